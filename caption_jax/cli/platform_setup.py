"""Process setup for all modes: XLA flags, the processes, the compilation cache and the log."""

from __future__ import annotations

from absl import app, flags, logging

from caption_jax.runtime.libraries import Verbosity, set_up_log
from caption_jax.runtime.process import set_up_process

DISTRIBUTED_MODES = ("train", "evaluate", "tune", "soup", "caption", "index", "search", "neighbours")
BULK_MODES = ("caption-many", "index-many")  # whose workers use the devices, while this process must not


def set_up_platform(options: flags.FlagValues) -> None:
    """Sets XLA flags, the compilation cache and the log, and connects the processes of a run on several hosts."""
    set_up_process()
    set_up_log(choose_verbosity(options))
    if options.mode in ("prepare", *BULK_MODES):  # this process uses no devices
        return
    import jax

    from caption_jax.runtime.compilation_cache import guard_programs, is_cache_safe, locate_cache

    if options.mode == "plan":
        from caption_jax.planning.topology import prepare

        prepare(options.topology)
    if options.mode in DISTRIBUTED_MODES:
        from caption_jax.runtime.distributed import join_processes

        join_processes(
            options.distributed, heartbeat_seconds=options.heartbeat, saves_on_signal=options.mode == "train"
        )
    if not is_cache_safe():
        disable_compilation_cache()
    guard_programs()
    # JAX_COMPILATION_CACHE_DIR overrides the cache in the workdir. A dry run does not write to the workdir.
    if jax.config.jax_compilation_cache_dir is None and not options.dry_run:
        jax.config.update("jax_compilation_cache_dir", locate_cache(options.workdir))
    # By default, programs that compile quickly are not cached, but many of them together take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    logging.debug("process %d of %d, devices: %s", jax.process_index(), jax.process_count(), jax.devices())


def choose_verbosity(options: flags.FlagValues) -> Verbosity:
    """Returns the verbosity of `--quiet` and `--verbose`.

    Raises:
        UsageError: both are set.
    """
    if options.quiet and options.verbose:
        raise app.UsageError("--quiet and --verbose exclude each other")
    return "quiet" if options.quiet else "verbose" if options.verbose else "normal"


def disable_compilation_cache() -> None:
    """Disables the cache of compiled programs, for runs on several CPU devices (`is_cache_safe`)."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)

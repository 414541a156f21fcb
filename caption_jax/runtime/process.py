"""Process setup before libraries are loaded: environment variables and garbage collection.

Also the command line of the process, and a fast exit.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import shutil
import sys
from collections.abc import Iterator

from input_pipeline.terminal_text import escape

# glibc reads these settings of malloc only when a process starts:
# - Each time a CPU program runs, XLA allocates its temporary buffers (hundreds of MB) and frees them again. Allocations
#   of this size are returned to the system immediately, so the next run causes a page fault per 4 KB. With huge pages
#   (glibc 2.35 and later) it is one per 2 MB.
# - By default, up to eight heaps per core are created for the threads of a process. Each keeps freed memory that the
#   others cannot use, so the memory of a long run would grow for hours.
MALLOC_SETTINGS = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={max(os.cpu_count() or 1, 2)}"}

# XLA's default of 256 bits uses half of an AVX-512 unit. Processors with narrower vectors are not affected.
_VECTOR_WIDTH = "--xla_cpu_prefer_vector_width"


def restart_with_malloc_settings(script: str) -> None:
    """Restarts the process `python script ...` with the settings of malloc.

    Does nothing if GLIBC_TUNABLES is already set, if the system is not Linux, or if this process was not started by
    that command, because a notebook or a test that runs the script in its process must not be replaced.

    Args:
        script: path of the calling file.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ or not is_command(script):
        return
    os.environ.update(MALLOC_SETTINGS)
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def fast_exit(script: str, status: int) -> None:
    """Exits the process `python script ...` without interpreter shutdown, which takes a third of a second with JAX.

    Call this after all output has been written, because exit handlers do not run. Does nothing if this process was not
    started by that command.

    Args:
        script: path of the main script.
        status: exit status of the process.
    """
    if is_command(script):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def current_command() -> str:
    """Returns the command line of this process, quoted for a shell; "" in a notebook or an interactive session."""
    program = _current_program("python")
    return " ".join(map(_quote, [*program, *sys.argv[1:]])) if program else ""


def make_command(*arguments: str) -> str:
    """Returns a command line that runs this program with other arguments, quoted for a shell.

    It can be pasted into the shell that started this process, because it contains the path of the interpreter or of the
    installed command unless the shell finds it by name. In a notebook, it starts with `caption-jax`.
    """
    typed = sys.orig_argv[0]
    interpreter = typed if os.path.dirname(typed) else "python"
    return " ".join(map(_quote, [*(_current_program(interpreter, sys.argv[0]) or ["caption-jax"]), *arguments]))


def _quote(argument: str) -> str:
    """Quotes an argument for a shell. Characters that affect the terminal are escapes, as in bash and zsh."""
    escaped = escape(argument)
    return shlex.quote(argument) if escaped == argument else "$'" + escaped.replace("'", r"\'") + "'"


def _current_program(interpreter: str, installed_command: str = "") -> list[str]:
    """Returns the first words of the command line of this process; [] in a notebook or an interactive session.

    Args:
        interpreter: the first word if a script or a module is running.
        installed_command: path of the installed command; "" for its name.
    """
    main = sys.modules["__main__"]
    module = getattr(main, "__spec__", None)
    if module is not None:
        return [interpreter, "-m", module.name.removesuffix(".__main__")]
    if not getattr(main, "__file__", "") or hasattr(sys, "ps1"):
        return []
    if sys.argv[0].endswith(".py"):
        return [interpreter, sys.argv[0]]
    name = os.path.basename(sys.argv[0])
    found = shutil.which(name)
    is_found = found is not None and os.path.realpath(found) == os.path.realpath(sys.argv[0])
    return [name if is_found or not installed_command else installed_command]


def is_command(script: str) -> bool:
    """Returns whether this process was started as `python script ...`, or as `python -m package` for its `__main__`."""
    arguments = sys.orig_argv[1:]
    for argument, next_argument in zip(arguments, [*arguments[1:], ""], strict=False):
        if os.path.realpath(argument) == os.path.realpath(script):
            return True
        if argument == "-m":
            return os.path.realpath(script).endswith(os.path.join(os.sep, *next_argument.split("."), "__main__.py"))
        if argument == "-c":
            return False
    return False


@contextlib.contextmanager
def paused_garbage_collection(script: str) -> Iterator[None]:
    """Pauses Python's cyclic garbage collection in `python script ...`, and then exempts all existing objects from it.

    Use this around imports. The objects they create exist until the process ends, so traversing them is pointless, but
    takes about 0.1 s with JAX. Does nothing if this process was not started by that command, because another program
    may have garbage to collect.

    Args:
        script: path of the main script.
    """
    if not (gc.isenabled() and is_command(script)):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def set_up_process() -> None:
    """Sets XLA's vector width on CPUs to 512 bits unless XLA_FLAGS already sets it. Call before importing JAX."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _VECTOR_WIDTH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_VECTOR_WIDTH}=512".strip()

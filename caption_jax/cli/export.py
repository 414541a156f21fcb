"""`--mode=export`: writes a trained model in a format for other programs and other people."""

from __future__ import annotations

from absl import app, flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.export.exporter import export_model
from caption_jax.export.hub_upload import HubRepository
from caption_jax.named_models import is_shared_copy
from input_pipeline.terminal_text import escape


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes the folder, uploads it with `--push`, and prints where it is; returns the exit status.

    Raises:
        UsageError: the model is given by name, and `--out` is missing.
    """
    if is_shared_copy(options.workdir) and not options.out:
        raise app.UsageError("a model given by name is exported to a folder of yours: set --out=FOLDER")
    spec = spec_from_flags(options, "defer")
    with display_from_flags(options) as display:
        repository = HubRepository(options.push) if options.push else None  # fails before any work is done
        with display.phase("exporting"):
            folder = export_model(
                options.workdir, options.to, options.out or "", options.checkpoint, spec, options.weights
            )
        name = ""
        if repository:
            with display.phase(f"uploading to {escape(options.push)}"):
                name = repository.upload(folder)
    print(escape(str(folder)))
    if name:
        print(escape(name))
    return 0

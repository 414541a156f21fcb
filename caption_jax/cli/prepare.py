"""`--mode=prepare`: writes a dataset as shards of images of one size, for fast training."""

from __future__ import annotations

from absl import flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.errors import ConfigError
from caption_jax.telemetry.progress import SILENT
from caption_jax.telemetry.progress_displays import open_display
from input_pipeline.data_spec import MIXTURE
from input_pipeline.disk_faults import format_bytes
from input_pipeline.files import local_path
from input_pipeline.prepared.card import CARD, Card
from input_pipeline.prepared.preparation import Request, prepare, read_settings
from input_pipeline.sources import read_splits
from input_pipeline.terminal_text import escape


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes the shards and their card, or continues an interrupted preparation; returns the exit status."""
    spec = spec_from_flags(options, "defer")
    if spec.data.source == MIXTURE:
        raise ConfigError(
            'config.data.source is "mixture": prepare each part with a config of its own, and set the source and root '
            "of the part to the prepared folder"
        )
    folder = local_path(options.out, "--out")
    request = Request(folder, spec.data, options.image_format, options.jpeg_quality, spec.limits)
    read_settings(folder)  # before any work is done
    with SILENT if options.quiet else open_display() as display:
        with display.phase("reading the data"):
            splits = read_splits(spec.data, spec.limits)
        card, is_new = prepare(request, splits, display.phase)
    print_card(card, options.out, is_new)
    return 0


def print_card(card: Card, folder: str, is_new: bool) -> None:
    """Prints what a prepared dataset contains, and how to train on it."""
    settings, folder = card.settings, escape(folder)
    size = settings["preprocessing"]["image_size"]
    shards = sum(len(split["shards"]) for split in card.splits.values())
    state = "" if is_new else " is prepared already"
    print(
        f"{folder}{state}: {_count_images(card)} images of {size} x {size} pixels ({settings['image_format']}), "
        f"{format_bytes(card.bytes)} in {shards} shards"
    )
    if card.skipped:
        print(f"{len(card.skipped)} images could not be read; {CARD} lists them")
    print(f"Train on it with the same config and\n  --config.data.source=prepared --config.data.root={folder}")


def _count_images(card: Card) -> str:
    return ", ".join(f"{split['images']:,} {name}" for name, split in card.splits.items())

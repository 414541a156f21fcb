"""Datasets other than the dataset of the run, for evaluation: folders with images and a caption file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from caption_jax.errors import ConfigError
from input_pipeline.data_spec import DataSpec, SplitFiles, SplitFractions
from input_pipeline.files import local_path
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import Split
from input_pipeline.sources import get_split, open_splits
from input_pipeline.sources.caption_files import find_captions

ALL = "all"


@dataclasses.dataclass(frozen=True)
class ExternalData:
    """A dataset to evaluate a run on.

    Attributes:
        name: name of the folder, which is part of the output file names.
        captions: paths of the caption files; `*.txt` for text files next to the images.
        split: the images to evaluate; named "all" if it contains every image of the folder.
    """

    name: str
    captions: tuple[Path, ...]
    split: Split

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(path.name for path in self.captions)})"


def open_external_data(folder: str, data: DataSpec, split: str = "", limits: Limits = DEFAULT_LIMITS) -> ExternalData:
    """Opens a folder with the `folder` data source.

    Args:
        folder: path of the folder, with images in `images/` or directly below it, and a caption file with a standard
            name, or a text file for each image.
        data: the data settings of the run, including the error policy (`on_error`).
        split: the split to evaluate, if the caption file defines splits; all images if empty.
        limits: `config.limits` of the run.

    Raises:
        MissingFileError: the folder does not exist or has no captions.
        DataError: the files are invalid, or the split does not exist.
    """
    root = local_path(folder, "--data")
    images = "images" if (root / "images").is_dir() else "."
    captions = find_captions(root, root / images)
    spec = dataclasses.replace(
        data,
        source="folder",
        root=folder,
        images=images,
        captions=captions,
        image_column="",
        caption_column="",
        split_files=SplitFiles(),
        split_field="",
        split_fractions=SplitFractions(),
        held_out_images=0,
    )
    splits = open_splits(spec, limits)
    if split:
        selected = get_split(splits, split)
    else:
        selected = Split(ALL, [record for records in splits.values() for record in records])
    return ExternalData(root.resolve().name, tuple(root / name for name in captions), selected)


def check_context(max_texts: int, kind: str) -> None:
    """Checks that the model is evaluated without context captions, which are not available for other datasets.

    Args:
        max_texts: maximum number of context texts of the model.
        kind: the requested kind of context; "" for the default of the run.

    Raises:
        ConfigError: the model would be evaluated with context.
    """
    if max_texts and kind != "none":
        raise ConfigError(
            "this run's model uses captions of similar images as context, which are not available for --data: add "
            "--context=none"
        )

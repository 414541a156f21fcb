"""Another data set than the run's own, to evaluate the run on: a folder of images and a caption file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from caption_jax.errors import ConfigError
from input_pipeline.data_spec import DataSpec, SplitFiles, SplitFractions
from input_pipeline.records import Split
from input_pipeline.sources import get_split, open_splits
from input_pipeline.sources.caption_files import find_caption_file

ALL = "all"


@dataclasses.dataclass(frozen=True)
class OtherData:
    """A data set to evaluate a run on.

    Attributes:
        name: of the data set, the folder's: part of the names of the files with the results.
        captions: the caption file that was read.
        split: the images; the split "all" for all of the folder's.
    """

    name: str
    captions: Path
    split: Split


def open_other_data(folder: str, data: DataSpec, split: str = "") -> OtherData:
    """Opens a folder as the source `folder` does.

    Args:
        folder: images, in `images/` or in the folder itself, and a caption file of a usual name.
        data: of the run: whether problems of the files stop it (`on_error`).
        split: the split to evaluate, where the caption file names splits; "" for all images.

    Raises:
        MissingFileError: there is no folder of that name, or no caption file in it.
        DataError: the files cannot be used, or there is no such split.
    """
    root = Path(folder)
    captions = find_caption_file(root)
    spec = dataclasses.replace(
        data,
        source="folder",
        root=folder,
        images="images" if (root / "images").is_dir() else ".",
        captions=(str(captions.relative_to(root)),),
        split_files=SplitFiles(),
        split_field="",
        split_fractions=SplitFractions(),
    )
    splits = open_splits(spec)
    chosen = get_split(splits, split) if split else Split(ALL, [record for each in splits.values() for record in each])
    return OtherData(root.resolve().name, captions, chosen)


def check_context(slots: int, kind: str) -> None:
    """Raises ConfigError where the model would read captions of similar images, which other data do not have.

    Args:
        slots: of the model's context.
        kind: what the user asks for; "" for what the run is trained with.
    """
    if slots and kind != "none":
        raise ConfigError(
            "this run's model reads captions of similar images, and there are none stored for those of --data: add "
            "--context=none"
        )

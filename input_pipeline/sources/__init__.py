"""Where captioned images come from. `open_splits` opens whatever `config.data.source` names."""

from __future__ import annotations

from input_pipeline.data_spec import DataSpec
from input_pipeline.records import DataError, Report, Split, check_splits


def open_splits(spec: DataSpec) -> dict[str, Split]:
    """Opens the data set of a config.

    Args:
        spec: `config.data`.

    Returns:
        Split name ("train", "val", "test", as far as there are) -> split. No image id is in two of them.

    Raises:
        DataError: the data cannot be used as they are, or two splits share an image.
    """
    source = spec.source
    # Imported when asked for: the TFDS sources take seconds to import, a folder needs none of that.
    if source == "folder":
        from input_pipeline.sources.folder import open_folder as open_source
    elif source == "tfds":
        from input_pipeline.sources.tfds import open_config as open_source
    else:
        from input_pipeline.sources.shapes import open_shapes as open_source
    splits = check_splits(open_source(spec))
    if "train" in splits:
        splits["train"] = _with_captions(splits["train"], spec.on_error)
    return splits


def _with_captions(train: Split, on_error: str) -> Split:
    """The images of the training split that have captions: an empty one would teach to say nothing."""
    report = Report(f"the split {train.name!r}")
    report.extend("images without captions", (record.name for record in train if not record.captions))
    report.finish(on_error, "Leave them out with --config.data.on_error=skip.")
    return Split(train.name, [record for record in train if record.captions]) if report else train


def get_split(splits: dict[str, Split], name: str) -> Split:
    """Returns a split, or says which there are.

    Raises:
        DataError: the data set has no such split, or no image in it.
    """
    if not splits.get(name):
        have = ", ".join(f"{split} ({len(records)})" for split, records in splits.items())
        raise DataError(
            f"there is no split {name!r}; the data set has {have}. Set config.data.split_files, "
            "config.data.split_field or config.data.split_fractions."
        )
    return splits[name]

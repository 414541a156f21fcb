"""Sources of captioned images. `open_splits` opens the source selected by `config.data.source`."""

from __future__ import annotations

from input_pipeline.data_spec import MIXTURE, DataSpec
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import DataError, Report, Split, check_splits, order_by_hash


def open_splits(spec: DataSpec, limits: Limits = DEFAULT_LIMITS) -> dict[str, Split]:
    """Opens the dataset of a config.

    Args:
        spec: `config.data`.
        limits: `config.limits`.

    Returns:
        Splits by name: "train", "val" and "test", if they exist. Each image id occurs in only one split.

    Raises:
        DataError: the data has problems, or two splits share an image.
    """
    splits = read_splits(spec, limits)
    if spec.held_out_images and spec.source != MIXTURE:  # parts hold out their own images
        splits = hold_out(splits, spec.held_out_images)
    if "train" in splits:
        splits["train"] = _drop_uncaptioned(splits["train"], spec)
    return splits


def read_splits(spec: DataSpec, limits: Limits = DEFAULT_LIMITS) -> dict[str, Split]:
    """Opens the dataset as its source defines it, without `config.data.held_out_images`; see `open_splits`."""
    return check_splits(_read_source(spec, limits))


def _read_source(spec: DataSpec, limits: Limits) -> dict[str, Split]:
    source = spec.source
    # Imported lazily, because importing TFDS takes seconds and folders do not need it.
    if source == "folder":
        from input_pipeline.sources.folder import open_folder

        return open_folder(spec, limits)
    if source == "tfds":
        from input_pipeline.sources.tfds import open_config

        return open_config(spec)
    if source == "webdataset":
        from input_pipeline.sources.webdataset import open_webdataset

        return open_webdataset(spec, limits)
    if source == "parquet":
        from input_pipeline.sources.parquet import open_parquet

        return open_parquet(spec, limits)
    if source == "prepared":
        from input_pipeline.sources.prepared import open_prepared

        return open_prepared(spec)
    if source == MIXTURE:
        from input_pipeline.sources.mixture import open_mixture

        return open_mixture(spec, lambda part: open_splits(part, limits))
    from input_pipeline.sources.shapes import open_shapes

    return open_shapes(spec)


def hold_out(splits: dict[str, Split], count: int) -> dict[str, Split]:
    """Makes `count` training images the validation split, and renames the previous one to "test".

    All settings can then be chosen without the images on which the results are reported. The images are selected by a
    hash of their id, so the selection does not depend on the machine, the order or the number of other images.

    Raises:
        DataError: the dataset has both a validation and a test split, or too few training images.
    """
    if "val" in splits and "test" in splits:
        raise DataError(
            f"config.data.held_out_images={count} names the validation split of the dataset test, but it has a test "
            "split; set config.data.held_out_images to 0, and choose settings on the validation split"
        )
    train = splits.get("train", ())
    if count >= len(train):
        raise DataError(f"config.data.held_out_images={count} must be less than the {len(train)} training images")
    held_out = {id(record) for record in order_by_hash(train, lambda record: record.image_id)[:count]}
    renamed = splits.get("val") or splits.get("test")
    result = {
        "train": Split("train", [record for record in train if id(record) not in held_out]),
        "val": Split("val", [record for record in train if id(record) in held_out]),
    }
    return result | ({"test": Split("test", list(renamed))} if renamed else {})


def _drop_uncaptioned(train: Split, spec: DataSpec) -> Split:
    """Drops training images without captions, because empty captions would train the model to output nothing."""
    report = Report(spec.report_subject(f"the split {train.name!r}"))
    report.extend("images without captions", (record.name for record in train if not record.captions))
    report.finish(spec.on_error, "Skip them with --config.data.on_error=skip.")
    return Split(train.name, [record for record in train if record.captions]) if report else train


def get_split(splits: dict[str, Split], name: str) -> Split:
    """Returns a split by name.

    Raises:
        DataError: the split does not exist or has no images. The message lists the existing splits.
    """
    if not splits.get(name):
        available = ", ".join(f"{split} ({len(records)})" for split, records in splits.items())
        raise DataError(
            f"no split {name!r}; the dataset has {available}. Set config.data.split_files, config.data.split_field or "
            "config.data.split_fractions."
        )
    return splits[name]

"""A folder written as a TFDS data set is read back unchanged, without TensorFlow. COCO has the Karpathy splits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, Letters, assert_same_batch, data_config, make_split

from input_pipeline.batches import train_batches
from input_pipeline.records import DataError, Split
from input_pipeline.sources import open_splits
from input_pipeline.sources.prepare_tfds import prepare
from input_pipeline.sources.tfds import open_tfds

# Writing needs TensorFlow (seconds to import), so one small data set serves all tests here.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    records = make_split(9, captions=2).records
    return {"train": Split("train", records[:6]), "val": Split("val", records[6:8]), "test": Split("test", records[8:])}


@pytest.fixture(scope="module")
def tfds_dir(splits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    prepare(splits, "small_captions", folder)
    return folder


def tfds_config(name: str, folder: Path, **changes):
    return data_config(source="tfds", tfds_name=name, tfds_dir=str(folder), **changes)


def assert_same_splits(one: dict[str, Split], two: dict[str, Split]) -> None:
    assert list(one) == list(two)
    for name in one:
        assert one[name].references == two[name].references
        for first, second in zip(one[name], two[name], strict=True):
            encoded = [
                r.source() if isinstance(r.source(), bytes) else r.source().read_bytes() for r in (first, second)
            ]
            assert encoded[0] == encoded[1]


def test_round_trip(splits, tfds_dir):
    opened = open_splits(tfds_config("small_captions", tfds_dir))
    assert_same_splits(opened, splits)
    assert opened["train"].image_ids == [1000, 1001, 1002, 1003, 1004, 1005]
    assert opened["val"][1].name == "small_captions/val[1] (image 1007)"


def test_batches_equal_those_of_the_folder(splits, tfds_dir):
    data = tfds_config("small_captions", tfds_dir, captions_per_image=2)
    pair = [
        train_batches(split, PREPROCESSING, Letters(), data, 0)
        for split in (splits["train"], open_splits(data)["train"])
    ]
    for _ in range(4):
        assert_same_batch(next(pair[0]), next(pair[1]))
    for batches in pair:
        batches.close()


def test_captions_are_cached_next_to_the_data_with_their_version(splits, tfds_dir):
    index = next(tfds_dir.glob("small_captions/*/captions_train.json"))
    content = index.read_text()
    index.write_text(content.replace("0/1", "from the cached file"))
    assert open_tfds("small_captions", tfds_dir)["train"][0].captions == ("0/0", "from the cached file")
    for damaged in (content[:-5], content.replace("small_captions/1.0.0", "small_captions/0.9.0"), "{}"):
        index.write_text(damaged)
        assert open_tfds("small_captions", tfds_dir)["train"].references == splits["train"].references
        assert index.read_text() == content  # written again


def test_read_only_folders_are_supported(splits, tfds_dir, monkeypatch):
    for index in tfds_dir.glob("small_captions/*/captions_*.json"):
        index.unlink()

    def fail(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr("input_pipeline.sources.tfds.write_atomically", fail)
    assert_same_splits(open_tfds("small_captions", tfds_dir), splits)
    assert not list(tfds_dir.glob("small_captions/*/captions_*.json"))


def test_reading_does_not_import_tensorflow(tfds_dir):
    program = textwrap.dedent("""
        import sys
        from input_pipeline.sources.tfds import open_tfds
        record = open_tfds("small_captions", sys.argv[1])["train"][2]
        assert record.source().startswith(b"\\x89PNG")
        assert "tensorflow" not in sys.modules
    """)
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", program, str(tfds_dir)], check=True, env=environment, timeout=120)


def test_public_coco_captions_has_karpathys_splits(tmp_path):
    """A few images with the names, features and order of splits of the public builder."""
    import tensorflow_datasets as tfds

    boxes = {"area": np.int64, "bbox": tfds.features.BBoxFeature(), "id": np.int64, "is_crowd": np.bool_}
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "objects": tfds.features.Sequence({**boxes, "label": tfds.features.ClassLabel(num_classes=80)}),
        }
    )

    def examples(ids):
        for image_id in ids:
            pixels = np.full((6, 8, 3), image_id, np.uint8)
            captions = [{"id": image_id, "text": f"number {image_id}"}]
            yield (
                image_id,
                {
                    "image": pixels,
                    "image/filename": f"COCO_val2014_{image_id:012}.jpg",
                    "image/id": image_id,
                    "captions": captions,
                    "objects": [],
                },
            )

    ids = {"train": [1, 2], "val": [3], "test": [4], "restval": [5, 6, 7]}
    tfds.dataset_builders.AdhocBuilder(
        name="coco_captions",
        version="1.1.0",
        config="2014",
        features=features,
        split_datasets={split: list(examples(numbers)) for split, numbers in ids.items()},
        data_dir=tmp_path,
        file_format="array_record",
    ).download_and_prepare()
    for name in ("coco_captions", "coco_captions/2014", "coco_captions/2014:1.1.0"):
        splits = open_splits(tfds_config(name, tmp_path))
        assert {split: set(records.image_ids) for split, records in splits.items()} == {
            "train": {1, 2, 5, 6, 7},
            "val": {3},
            "test": {4},
        }
    for record in splits["train"]:
        assert record.captions == (f"number {record.image_id}",)
        assert abs(int(PREPROCESSING.load(record.source()).mean()) - record.image_id) <= 1
        assert f"{record.image_id:012}.jpg" in record.name


def test_missing_data_are_reported(tfds_dir, splits, tmp_path):
    with pytest.raises(DataError, match=r"'nothing' in .*config\.data\.tfds_dir.*--file_format=array_record"):
        open_splits(tfds_config("nothing", tfds_dir))
    with pytest.raises(DataError, match="already exists"):
        prepare(splits, "small_captions", tfds_dir)
    gone = type(splits["test"][0])(tmp_path / "gone.jpg", ("text",), "gone.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read"):
        prepare({"train": Split("train", [gone])}, "broken", tmp_path)


def test_data_without_random_access_are_rejected_with_a_remedy(splits, tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "caption": tfds.features.Text()})
    for file_format in ("tfrecord", "array_record"):
        tfds.dataset_builders.AdhocBuilder(
            name=f"as_{file_format}",
            version="1.0.0",
            features=features,
            split_datasets={"validation": [(0, {"image": np.zeros((2, 2, 3), np.uint8), "caption": "one text"})]},
            data_dir=tmp_path,
            file_format=file_format,
        ).download_and_prepare()
    with pytest.raises(DataError, match=r"file_format=array_record"):
        open_splits(tfds_config("as_tfrecord", tmp_path))
    # The minimal features: an image and one caption.
    assert open_splits(tfds_config("as_array_record", tmp_path))["val"].references == {"validation/0": ["one text"]}


def test_coco_photographs_survive_a_round_trip(shared_data, tmp_path):
    """The documented command, on real COCO photographs."""
    config = tmp_path / "config.py"
    config.write_text(
        textwrap.dedent("""
            from caption_jax.config import default_config

            def get_config():
                config = default_config()
                config.data.captions = ("captions.json",)
                config.data.split_fractions.val = 0.1
                return config
        """)
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "input_pipeline.sources.prepare_tfds", f"--config={config}"]
    command += [f"--config.data.root={shared_data / 'coco_mini'}", f"--config.data.tfds_dir={tmp_path}"]
    process = subprocess.run(
        [*command, "--config.data.tfds_name=mini"], cwd=root, capture_output=True, text=True, timeout=300, check=True
    )
    assert "72 train, 8 val images" in process.stdout
    folder = data_config(
        source="folder",
        root=str(shared_data / "coco_mini"),
        captions=("captions.json",),
        split_fractions={"val": 0.1, "test": 0.0},
    )
    assert_same_splits(open_splits(tfds_config("mini", tmp_path)), open_splits(folder))

"""TFDS datasets are written from a folder and read without TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches, make_data_spec, make_split
from written_shards import assert_prepared_is_equal

from input_pipeline.batches import train_batches
from input_pipeline.records import DataError, Record, Split
from input_pipeline.sources import open_splits
from input_pipeline.sources.prepare_tfds import prepare
from input_pipeline.sources.tfds import open_tfds

# Writing requires TensorFlow, which takes seconds to import.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    records = make_split(9, num_captions=2).records
    return {"train": Split("train", records[:6]), "val": Split("val", records[6:8]), "test": Split("test", records[8:])}


@pytest.fixture(scope="module")
def tfds_dir(splits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    prepare(splits, "small_captions", folder)
    return folder


def make_tfds_spec(name: str, folder: Path, **changes):
    return make_data_spec(source="tfds", tfds_name=name, tfds_dir=str(folder), **changes)


def read_image_file(record: Record) -> bytes:
    source = record.source()
    return source if isinstance(source, bytes) else source.read_bytes()


def assert_equal_splits(actual: dict[str, Split], expected: dict[str, Split]) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        assert actual[name].references == expected[name].references
        assert list(map(read_image_file, actual[name])) == list(map(read_image_file, expected[name]))


def test_a_written_dataset_is_read_back_unchanged(splits, tfds_dir):
    opened = open_splits(make_tfds_spec("small_captions", tfds_dir))
    assert_equal_splits(opened, splits)
    assert opened["train"].image_ids == [1000, 1001, 1002, 1003, 1004, 1005]
    assert opened["val"][1].name == "small_captions/val[1] (image 1007)"


def test_batches_match_those_of_the_original_split(splits, tfds_dir):
    data = make_tfds_spec("small_captions", tfds_dir, captions_per_image=2)
    expected, actual = (
        train_batches(split, PREPROCESSING, CharacterVocabulary(), data, 0)
        for split in (splits["train"], open_splits(data)["train"])
    )
    for _ in range(4):
        assert_equal_batches(next(actual), next(expected))
    expected.close()
    actual.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_prepared_dataset_has_the_same_images_and_captions(tfds_dir, tmp_path, workers):
    assert_prepared_is_equal(make_tfds_spec("small_captions", tfds_dir), tmp_path, workers)


def test_captions_are_cached_in_a_file_that_is_replaced_if_invalid(splits, tfds_dir):
    cache = next(tfds_dir.glob("small_captions/*/captions_train.json"))
    content = cache.read_text()
    cache.write_text(content.replace("0/1", "from the cached file"))
    assert open_tfds("small_captions", tfds_dir)["train"][0].captions == ("0/0", "from the cached file")
    for invalid in (content[:-5], content.replace("small_captions/1.0.0", "small_captions/0.9.0"), "{}"):
        cache.write_text(invalid)
        assert open_tfds("small_captions", tfds_dir)["train"].references == splits["train"].references
        assert cache.read_text() == content


def test_read_only_folders_are_supported(splits, tfds_dir, monkeypatch):
    for cache in tfds_dir.glob("small_captions/*/captions_*.json"):
        cache.unlink()

    def fail(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr("input_pipeline.sources.tfds.write_atomically", fail)
    assert_equal_splits(open_tfds("small_captions", tfds_dir), splits)
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


def test_public_coco_captions_have_the_karpathy_splits(tmp_path):
    """Uses a few images with the features and split names of the public builder."""
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

    def make_examples(image_ids):
        for image_id in image_ids:
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
        split_datasets={split: list(make_examples(image_ids)) for split, image_ids in ids.items()},
        data_dir=tmp_path,
        file_format="array_record",
    ).download_and_prepare()
    for name in ("coco_captions", "coco_captions/2014", "coco_captions/2014:1.1.0"):
        splits = open_splits(make_tfds_spec(name, tmp_path))
        assert {split: set(records.image_ids) for split, records in splits.items()} == {
            "train": {1, 2, 5, 6, 7},
            "val": {3},
            "test": {4},
        }
    for record in splits["train"]:
        assert record.captions == (f"number {record.image_id}",)
        assert abs(int(PREPROCESSING.load(record.source()).mean()) - record.image_id) <= 1
        assert f"{record.image_id:012}.jpg" in record.name


def test_missing_and_existing_datasets_and_unreadable_images_are_rejected(tfds_dir, splits, tmp_path):
    with pytest.raises(DataError, match=r"'missing' in .*config\.data\.tfds_dir.*--file_format=array_record"):
        open_splits(make_tfds_spec("missing", tfds_dir))
    with pytest.raises(DataError, match="already exists"):
        prepare(splits, "small_captions", tfds_dir)
    record = Record(tmp_path / "missing.jpg", ("text",), "missing.jpg")
    with pytest.raises(DataError, match=r"missing\.jpg cannot be read"):
        prepare({"train": Split("train", [record])}, "broken", tmp_path)


def test_datasets_without_random_access_are_rejected(splits, tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "caption": tfds.features.Text()})
    for file_format in ("tfrecord", "array_record"):
        tfds.dataset_builders.AdhocBuilder(
            name=f"as_{file_format}",
            version="1.0.0",
            features=features,
            split_datasets={"validation": [(0, {"image": np.zeros((2, 2, 3), np.uint8), "caption": "a caption"})]},
            data_dir=tmp_path,
            file_format=file_format,
        ).download_and_prepare()
    with pytest.raises(DataError, match=r"file_format=array_record"):
        open_splits(make_tfds_spec("as_tfrecord", tmp_path))
    # The only required features are an image and one caption.
    assert open_splits(make_tfds_spec("as_array_record", tmp_path))["val"].references == {"validation/0": ["a caption"]}


def test_the_documented_command_converts_coco_photographs(shared_data, tmp_path):
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
    data = make_data_spec(
        source="folder",
        root=str(shared_data / "coco_mini"),
        captions=("captions.json",),
        split_fractions={"val": 0.1, "test": 0.0},
    )
    assert_equal_splits(open_splits(make_tfds_spec("mini", tmp_path)), open_splits(data))

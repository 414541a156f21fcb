"""The shapes dataset is generated reproducibly, and each caption identifies its scene."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_shards import assert_prepared_is_equal

from caption_jax.config import default_config
from caption_jax.specs import DataSpec, build_spec
from input_pipeline.sources.shapes import open_shapes
from input_pipeline.sources.shapes_dataset.builder import CaptionShapes, generate_split_scenes
from input_pipeline.sources.shapes_dataset.drawing import draw_scene, encode_png
from input_pipeline.sources.shapes_dataset.scenes import Group, Scene, generate_scenes

FULL = CaptionShapes.builder_configs["full"]


def make_data_spec(folder: Path) -> DataSpec:
    config = default_config().data
    config.tfds_dir, config.shapes = str(folder), "tiny"
    return build_spec(DataSpec, config, "data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def splits(folder):
    return open_shapes(make_data_spec(folder))


@pytest.fixture(scope="module")
def all_scenes() -> dict[str, list[Scene]]:
    return {name: [scene for _, scene in generate_split_scenes(FULL, name)] for name in ("train", "val", "test")}


def test_splits_contain_images_with_five_captions(splits, folder):
    assert {name: len(split) for name, split in splits.items()} == {"train": 192, "val": 24, "test": 24}
    record = splits["val"][3]
    image = Image.open(io.BytesIO(record.source()))
    assert image.size == (96, 96) and image.mode == "RGB" and image.format == "PNG"
    assert len(record.captions) == 5 and all(isinstance(caption, str) for caption in record.captions)
    assert not list(folder.rglob("*making*")), "temporary folders are deleted"


def test_stored_and_regenerated_data_are_equal(splits, folder, tmp_path):
    for reopened in (open_shapes(make_data_spec(folder)), open_shapes(make_data_spec(tmp_path))):
        for expected, actual in zip(splits["test"], reopened["test"], strict=True):
            assert (actual.image_id, actual.captions) == (expected.image_id, expected.captions)
            assert actual.source() == expected.source()


def test_images_match_their_captions(splits):
    scenes_by_id = dict(generate_split_scenes(CaptionShapes.builder_configs["tiny"], "val"))
    for record in splits["val"]:
        scene = scenes_by_id[record.image_id]
        assert record.captions == scene.captions()
        assert record.source() == encode_png(draw_scene(scene, f"shapes picture {record.image_id}"))


def test_a_prepared_dataset_has_the_same_images_and_captions(splits, folder, tmp_path):
    assert_prepared_is_equal(make_data_spec(folder), tmp_path)


def test_reading_does_not_import_tensorflow(folder, splits):
    code = (
        "import sys; from caption_jax.config import default_config\n"
        "from input_pipeline.sources.shapes import open_shapes\n"
        "data = default_config().data; data.shapes = 'tiny'; data.tfds_dir = sys.argv[1]\n"
        "assert len(open_shapes(data)['train']) == 192; sys.exit('tensorflow' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=root)


@pytest.mark.slow
def test_two_processes_can_generate_the_dataset_concurrently(tmp_path):
    code = (
        "import sys; from caption_jax.config import default_config\n"
        "from input_pipeline.sources.shapes import open_shapes\n"
        "data = default_config().data; data.shapes = 'tiny'; data.tfds_dir = sys.argv[1]\n"
        "print(sum(len(record.source()) for record in open_shapes(data)['train']))"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1] and int(outputs[0]) > 0
    assert [path.name for path in (tmp_path / "caption_shapes" / "tiny").iterdir()] == ["1.0.0"]


def test_an_unknown_size_is_rejected(folder):
    with pytest.raises(ValueError, match=r"data\.shapes is 'huge'.*full.*tiny"):
        dataclasses.replace(make_data_spec(folder), shapes="huge")


def test_splits_have_no_scenes_in_common(all_scenes):
    assert {name: len(split) for name, split in all_scenes.items()} == {"train": 6000, "val": 300, "test": 300}
    assert len(set(itertools.chain(*all_scenes.values()))) == 6600


def test_each_caption_describes_a_single_scene(all_scenes):
    scenes_by_caption: dict[str, set[Scene]] = collections.defaultdict(set)
    for scene in itertools.chain(*all_scenes.values()):
        captions = scene.captions()
        assert len(set(captions)) == 5
        for caption in captions:
            scenes_by_caption[caption].add(scene)
    assert all(len(described) == 1 for described in scenes_by_caption.values())


def test_a_constant_caption_is_rarely_correct(all_scenes):
    counts = collections.Counter(caption for scene in all_scenes["test"] for caption in scene.captions())
    assert counts.most_common(1)[0][1] / len(all_scenes["test"]) < 0.01


def test_attributes_are_balanced(all_scenes):
    groups = [group for scene in all_scenes["train"] for group in (scene.first, scene.second) if group]
    for attribute, num_values in (("count", 3), ("size", 2), ("colour", 6), ("shape", 6)):
        counts = collections.Counter(getattr(group, attribute) for group in groups)
        assert len(counts) == num_values and min(counts.values()) > 0.8 * len(groups) / num_values
    assert 300 < sum(scene.second is None for scene in all_scenes["train"]) < 700


def test_captions_describe_the_scene():
    circles, star = Group(3, "small", "red", "circle"), Group(1, "large", "blue", "star")
    assert Scene(circles, "top", star).captions() == (
        "three small red circles above a large blue star",
        "a large blue star below three small red circles",
        "there are three small red circles above a large blue star",
        "three small red circles at the top and a large blue star at the bottom",
        "the picture shows three little red circles over a big blue star",
    )
    assert Scene(star, "right").captions() == (
        "a large blue star on the right",
        "there is a large blue star on the right",
        "on the right is a large blue star",
        "a large blue star on the right of the picture",
        "the picture shows a big blue star on the right",
    )


def test_images_show_count_side_size_and_colour():
    def draw_blue_mask(scene: Scene) -> np.ndarray:
        pixels = np.asarray(draw_scene(scene, "a seed"), np.int32)
        return np.abs(pixels - np.array([45, 85, 220])).sum(-1) < 60

    small, large = (draw_blue_mask(Scene(Group(1, size, "blue", "circle"), "left")) for size in ("small", "large"))
    assert 2 < large.sum() / small.sum() < 5
    for mask in (small, large):
        assert mask[:, :48].any() and not mask[:, 48:].any()
    three = draw_blue_mask(Scene(Group(3, "small", "blue", "circle"), "bottom"))
    assert not three[:48].any()
    columns = three.any(0)
    assert np.sum(columns[1:] & ~columns[:-1]) == 3, "three separate objects in a row"
    assert not draw_blue_mask(Scene(Group(1, "large", "red", "circle"), "left")).any()


def test_objects_do_not_touch_each_other_or_the_border():
    for seed in range(40):  # draws scenes with the most and largest objects
        for shape in ("square", "cross", "star", "circle"):
            pixels = np.asarray(draw_scene(Scene(Group(3, "large", "black", shape), "left"), str(seed)), np.int32)
            dark = pixels.max(-1) < 120
            assert not (dark[0].any() or dark[-1].any() or dark[:, 0].any())
            rows = dark.any(1)
            assert np.sum(rows[1:] & ~rows[:-1]) == 3


def test_scenes_depend_on_the_seed():
    first, repeated, other = (list(itertools.islice(generate_scenes(seed), 20)) for seed in (1, 1, 2))
    assert first == repeated and first != other


def test_scenes_are_stored_as_json(folder, splits):
    source = CaptionShapes(config="tiny", data_dir=str(folder)).as_data_source("val")
    content = json.loads(source[0]["scene"])
    assert set(content) == {"first", "side", "second"} and content["first"]["count"] in (1, 2, 3)

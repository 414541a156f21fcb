"""The `mixture` source draws training images from several datasets in proportion to their weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from synthetic_splits import make_data_spec
from written_shards import (
    TRAIN,
    VAL,
    assert_processes_continue,
    make_batches,
    make_members,
    read_batches,
    write_folder,
    write_shards,
    write_tar,
)

from caption_jax.cli.config_flag import define_config
from caption_jax.config import default_config, to_config_dict
from caption_jax.errors import UnknownKeyError, WorkdirError
from caption_jax.runs.workdir import check_resumable
from caption_jax.specs import DataSpec, RunSpec, SplitFractions, as_mapping, differences
from input_pipeline.errors import ConfigError, DataError, MissingFileError
from input_pipeline.image_order import make_train_order
from input_pipeline.sources import open_splits


def make_mixture_spec(parts: dict[str, Any], **changes: Any) -> DataSpec:
    return dataclasses.replace(make_data_spec(), source="mixture", mixture=parts, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A folder with ten training images and three validation images. Tests must not modify it."""
    return write_folder(tmp_path_factory.mktemp("mixture") / "folder").root


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """Tar files with four training images and one validation image. Tests must not modify them."""
    root = tmp_path_factory.mktemp("mixture")
    write_tar(root / "train-0.tar", make_members({f"{number:03d}": (f"{number} c",) for number in range(20, 24)}))
    write_tar(root / "val-0.tar", make_members({"000": ("0 c",)}))
    return str(root)


@pytest.fixture
def spec(folder, shards) -> DataSpec:
    """A mixture that draws two of three images from the four of `small`."""
    return make_mixture_spec(
        {
            "small": {"source": "webdataset", "root": shards, "weight": 2},
            "big": {"source": "folder", "root": folder},
        }
    )


def test_splits_are_those_of_all_parts_with_their_names(spec):
    splits = open_splits(spec)
    assert list(splits) == ["train", "val"] and splits["train"].image_ids[9:11] == ["big/009", "small/020"]
    assert splits["val"].references == {**{f"big/{key}": [*texts] for key, texts in VAL.items()}, "small/000": ["0 c"]}
    assert splits["train"][10].name == "small: train-0.tar/020.png" and len(splits["train"]) == len(TRAIN) + 4
    # The tokenizer is trained on the captions of all parts.
    assert {"0 a", "20 c"} <= set(splits["train"].captions)


def test_images_are_drawn_in_proportion_to_the_weights_and_equally_often(spec):
    train = open_splits(spec)["train"]
    order = make_train_order(train, 0, 3)
    draws = [order[position] for position in range(14 * 12)]
    for epoch in range(12):
        assert sum(draw.index >= 10 for draw in draws[14 * epoch : 14 * (epoch + 1)]) == 9  # two thirds of 14
        assert order.indices(epoch).tolist() == [draw.index for draw in draws[14 * epoch : 14 * (epoch + 1)]]
    for part, count in ((range(10), 60), (range(10, 14), 108)):
        sequence = [draw for draw in draws if draw.index in part]
        assert len(sequence) == count
        # Each pass contains all images, and has its own captions.
        for start in range(0, count, len(part)):
            images = sequence[start : start + len(part)]
            assert sorted(draw.index for draw in images) == list(part)
            assert {draw.epoch for draw in images} == {start // len(part)}
    distances = np.diff(np.flatnonzero([draw.index < 10 for draw in draws]))
    assert len(set(distances.tolist())) > 2  # mixed at random


def test_captions_of_an_image_are_used_equally_often(spec):
    batches = make_batches(dataclasses.replace(spec, batch_size=14))
    texts = Counter()
    for _ in range(4):  # 36 images of the small part, 20 of the big one: two passes
        tokens = next(batches)
        texts.update(zip(tokens["index"].tolist(), map(bytes, tokens["tokens"]), strict=True))
    batches.close()
    assert all(count == 1 for (index, _), count in texts.items() if index < 10) and len(texts) == 20 + 4


def test_batches_resume_and_do_not_depend_on_the_number_of_processes(spec):
    expected = read_batches(spec, 12)
    assert_processes_continue(spec, expected, start=5)
    assert all(batch["mask"].all() for batch in expected)


def test_a_state_of_other_weights_is_rejected(spec):
    state = make_batches(spec).get_state()
    parts = {**spec.mixture, "small": {**spec.mixture["small"], "weight": 3.0}}
    with pytest.raises(DataError, match=r"different data \(order: saved "):
        make_batches(dataclasses.replace(spec, mixture=parts)).set_state(state)


@pytest.mark.parametrize("window", [0, 4])
def test_a_mixture_of_one_part_has_the_order_of_its_source(window, tmp_path):
    alone = dataclasses.replace(write_shards(tmp_path, "webdataset"), shuffle_window=window)
    mixed = make_mixture_spec({"one": {"source": "webdataset", "root": alone.root, "shuffle_window": window}})
    orders = [make_train_order(open_splits(spec)["train"], spec.shuffle_window, 3) for spec in (alone, mixed)]
    expected, actual = ([order[position] for position in range(35)] for order in orders)
    assert actual == expected


# --- keys ---


def test_parts_inherit_the_keys_that_they_do_not_set(folder):
    parts = {"a": {"source": "folder", "split_fractions": {"test": 0.5}}, "b": {"source": "shapes", "on_error": "stop"}}
    data = make_mixture_spec(parts, root=folder, on_error="skip", split_fractions=SplitFractions(val=0.25))
    first, second = data.list_parts()
    assert (first.root, first.on_error, first.weight) == (folder, "skip", 1.0)
    assert first.split_fractions == SplitFractions(val=0.25, test=0.5)
    assert (second.on_error, second.split_fractions.test) == ("stop", 0.0)


def test_a_mixture_round_trips_through_json_and_its_config(spec):
    run = RunSpec(data=spec)
    assert RunSpec.from_config(json.loads(json.dumps(as_mapping(run)))) == run
    assert RunSpec.from_config(to_config_dict(run)) == run
    assert DataSpec.from_config(to_config_dict(run).data) == spec


def apply_flags(config: ConfigDict, *argv: str) -> RunSpec:
    values = flags.FlagValues()
    define_config(config, argv, values)
    values(["main.py", *argv])
    return RunSpec.from_config(values.config)


def make_config() -> ConfigDict:
    config = default_config()
    config.data.source = "mixture"
    config.data.mixture = {"coco": {"source": "parquet", "root": "COCO", "weight": 2}, "mine": {"source": "folder"}}
    return config


def test_flags_change_keys_of_a_part_and_common_keys():
    argv = (
        "--config.data.mixture.coco.weight=2.5",
        "--config.data.mixture.mine.shards.train=x",
        "--config.data.root=R",
    )
    first, second = apply_flags(make_config(), *argv).data.list_parts()
    assert (first.weight, first.root) == (2.5, "COCO")
    assert (second.weight, second.root, second.shards.train) == (1.0, "R", "x")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.data.mixture.coco.wieght=2", "--config.data.mixture.coco.wieght: .* has no key 'wieght'"),
        ("--config.data.mixture.cocoa.weight=2", "mixture has no key 'cocoa'. Did you mean \"coco\""),
    ],
)
def test_flags_of_unknown_parts_and_keys_are_rejected(flag, message):
    with pytest.raises(UnknownKeyError, match=message):
        apply_flags(make_config(), flag)


FOLDER = {"source": "folder"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "config.data.mixture has no parts: set it to"),
        ({"a": {}}, "config.data.mixture.a.source must be set to one of shapes, folder, tfds"),
        ({"a": {"source": "web"}}, "config.data.mixture.a.source must be set to one of shapes"),
        ({"a": {"source": "mixture"}}, "config.data.mixture.a.source: a part cannot be a mixture"),
        ({"a": {**FOLDER, "mixture": {"b": FOLDER}}}, "config.data.mixture.a.mixture: a part cannot be a mixture"),
        ({"a": {**FOLDER, "weight": 0}}, r"config.data.mixture.a.weight is 0.0; it must be in \(0, inf\)"),
        ({"a": {**FOLDER, "weight": -1.5}}, "config.data.mixture.a.weight is -1.5"),
        ({"a": {**FOLDER, "weight": math.nan}}, "config.data.mixture.a.weight is nan"),
        ({"a": {**FOLDER, "weight": math.inf}}, "config.data.mixture.a.weight is inf; it must be finite"),
        ({"a": {**FOLDER, "weight": "much"}}, "config.data.mixture.a.weight is 'much'; it must be of type float"),
        ({"a": {**FOLDER, "wieght": 2.0}}, "config.data.mixture.a has no key 'wieght'; its keys are weight, source"),
        ({"a": {**FOLDER, "image_size": 64}}, "config.data.mixture.a.image_size must be the same for all parts: set"),
        ({"a": {**FOLDER, "on_error": "go on"}}, "config.data.mixture.a.on_error is 'go on'"),
        (
            {"a": {**FOLDER, "captions": "x.json"}},
            "config.data.mixture.a.captions is 'x.json'; it must be of type tuple",
        ),
        ({"a": {**FOLDER, "shards": {"tain": "x"}}}, "config.data.mixture.a.shards has no key 'tain'"),
        ({"a": {**FOLDER, "split_fractions": {"val": 2.0}}}, r"config.data.mixture.a.split_fractions.val is 2.0"),
        ({"a": "folder"}, "config.data.mixture.a is 'folder'; it must be a dictionary"),
        ({"my part": FOLDER}, "the name 'my part' of a part must consist of letters"),
    ],
)
def test_wrong_parts_are_one_line_with_their_key(parts, message):
    with pytest.raises(ConfigError, match=message) as error:
        DataSpec(source="mixture", mixture=parts)
    assert "\n" not in str(error.value)


def test_parts_are_not_checked_for_another_source():
    assert DataSpec(source="folder", mixture={"a": {"weight": 0.0}}).source == "folder"


def test_a_run_may_be_resumed_with_moved_parts_but_not_with_other_weights(spec):
    def change(**values: Any) -> RunSpec:
        return RunSpec(
            data=dataclasses.replace(spec, mixture={**spec.mixture, "big": {**spec.mixture["big"], **values}})
        )

    run = RunSpec(data=spec)
    check_resumable(differences(run, change(root="moved")), "run")
    for changed in (change(weight=2.0), change(shuffle_window=5), change(source="parquet")):
        with pytest.raises(WorkdirError, match=r"cannot be resumed with these changes:\n  data\.mixture\.big\."):
            check_resumable(differences(run, changed), "run")


# --- problems ---


def test_errors_and_reports_name_the_part(spec, tmp_path, caplog):
    (tmp_path / "train-1.tar").write_bytes(b"")
    write_tar(tmp_path / "train-2.tar", make_members({"001": ("1 c",)}))
    parts = {**spec.mixture, "broken": {"source": "webdataset", "root": str(tmp_path)}}
    broken = dataclasses.replace(spec, mixture=parts)
    with pytest.raises(DataError) as error:
        open_splits(broken)
    message = str(error.value)
    assert f"Problems in the part broken of the mixture, {tmp_path}:\n" in message and "train-1.tar" in message
    assert "--config.data.mixture.broken.on_error=skip" in message and message.count("the part broken") == 1
    parts["broken"]["on_error"] = "skip"
    assert "broken/001" in open_splits(broken)["train"].image_ids
    assert f"Problems in the part broken of the mixture, {tmp_path}:" in caplog.text
    parts["broken"] = {"source": "folder", "root": "nowhere"}
    with pytest.raises((DataError, MissingFileError)) as error:
        open_splits(broken)
    assert str(error.value).startswith(
        "the part broken of the mixture: no such folder: nowhere; set config.data.mixture"
    )


def test_a_weight_too_small_for_an_image_is_an_error(spec):
    parts = {**spec.mixture, "big": {**spec.mixture["big"], "weight": 1e-3}}
    with pytest.raises(ConfigError, match=r"mixture\.big\.weight=0\.001 is less than one of the 14 images of an epoch"):
        open_splits(dataclasses.replace(spec, mixture=parts))


def test_an_image_in_different_splits_of_two_parts_is_an_error(shards):
    part = {"source": "webdataset", "root": shards}
    parts = {"a": part, "b": {**part, "shards": {"train": "val-0.tar", "val": "train-0.tar"}}}
    with pytest.raises(DataError, match=r"images in two splits: 5\n    a: val-0.*000\.png \(val\) and b: .*\(train\)"):
        open_splits(make_mixture_spec(parts))
    assert len(open_splits(make_mixture_spec({"a": part, "b": part}))["train"]) == 8


def test_each_part_holds_out_its_own_images(spec):
    parts = {**spec.mixture, "big": {**spec.mixture["big"], "held_out_images": 2}}
    splits = open_splits(dataclasses.replace(spec, mixture=parts))
    counts = {
        name: Counter(image_id.partition("/")[0] for image_id in split.image_ids) for name, split in splits.items()
    }
    assert counts == {"train": {"big": 8, "small": 4}, "val": {"big": 2, "small": 1}, "test": {"big": 3}}

"""Training batches resume exactly at any step on any number of processes. Evaluation reads each image once."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import logging
import re
import threading

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches, make_data_spec, make_split

from input_pipeline.batches import eval_batches, train_batches
from input_pipeline.context import ContextCaptions
from input_pipeline.examples import choose_captions
from input_pipeline.packing import pack_captions
from input_pipeline.records import DataError, Record, Split
from input_pipeline.sources import open_splits


def make_train_batches(split, data, seed=0, **process_options):
    return train_batches(split, PREPROCESSING, CharacterVocabulary(), data, seed, **process_options)


def make_eval_batches(split, data, **process_options):
    return eval_batches(split, PREPROCESSING, CharacterVocabulary(), data, **process_options)


def next_batches(iterator, count):
    return list(itertools.islice(iterator, count))


def test_batches_pair_images_with_their_captions():
    batches = make_train_batches(make_split(9), make_data_spec(batch_size=5, captions_per_image=2))
    for batch in next_batches(batches, 4):
        assert batch["image"].shape == (5, 4, 4, 3) and batch["image"].dtype == np.uint8
        assert batch["tokens"].shape == (5, 2, 8) and batch["tokens"].dtype == np.int32
        assert batch["mask"].all() and batch["mask"].dtype == bool and batch["index"].dtype == np.int32
        for row, index in enumerate(batch["index"]):
            assert (batch["image"][row] == (index, index, 100)).all()
            captions = [CharacterVocabulary().decode(ids) for ids in batch["tokens"][row]]
            assert {caption.split("/")[0] for caption in captions} == {str(index)}
            assert len(set(captions)) == 2
    batches.close()


def test_batch_arrays_and_dtypes_match_the_module_docstring():
    docstring = inspect.getmodule(train_batches).__doc__
    documented_dtypes = dict(re.findall(r"^    (\w+) +(\w+) .*\]: ", docstring, flags=re.MULTILINE))
    split = make_split(9)
    context = ContextCaptions(dict.fromkeys(split.image_ids, ()), split, 2, CharacterVocabulary(), 8)
    batches = make_train_batches(split, make_data_spec(batch_size=4), context=context)
    (batch,) = next_batches(batches, 1)
    batches.close()
    batch |= pack_captions(batch["tokens"], batch["mask"], rows=2)
    assert set(documented_dtypes) == {*batch, "features"}
    assert {name: str(array.dtype) for name, array in batch.items()}.items() <= documented_dtypes.items()


def test_epochs_contain_all_images_in_different_orders():
    batches = make_train_batches(make_split(12), make_data_spec())
    epochs = [np.concatenate([batch["index"] for batch in next_batches(batches, 3)]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert batches.epoch == 3.0
    batches.close()


def test_the_order_depends_on_the_seed():
    orders = []
    for seed in (0, 0, 1, 2**40):
        batches = make_train_batches(make_split(40), make_data_spec(batch_size=40), seed)
        orders.append([tuple(batch["index"]) for batch in next_batches(batches, 2)])
        batches.close()
    assert orders[0] == orders[1]
    # Three seeds with two epochs each give six different orders.
    assert len({order for epochs in orders[1:] for order in epochs}) == 6


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    num_images=st.integers(1, 11),
    batch_size=st.integers(1, 6),
    captions_per_image=st.integers(0, 4),
    workers=st.integers(0, 3),
    steps_before=st.integers(0, 7),
    steps_after=st.integers(1, 4),
)
def test_resumed_batches_match_an_uninterrupted_run(
    num_images, batch_size, captions_per_image, workers, steps_before, steps_after
):
    split, data = make_split(num_images), make_data_spec(batch_size, captions_per_image, workers)
    uninterrupted = make_train_batches(split, data)
    expected = next_batches(uninterrupted, steps_before + steps_after)
    interrupted = make_train_batches(split, data)
    next_batches(interrupted, steps_before)
    state = json.loads(json.dumps(interrupted.get_state()))
    resumed = make_train_batches(split, data)
    next(resumed)  # an iterator that has already started accepts a state
    resumed.set_state(state)
    for batch in expected[steps_before:]:
        assert_equal_batches(next(resumed), batch)
    for iterator in (uninterrupted, interrupted, resumed):
        iterator.close()


@pytest.mark.parametrize("process_count", [2, 4])
def test_global_batches_do_not_depend_on_the_process_count(process_count):
    split, data = make_split(10), make_data_spec(batch_size=8, captions_per_image=2)
    single = make_train_batches(split, data)
    processes = [
        make_train_batches(split, data, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    for batch in next_batches(single, 5):
        shards = [next(process) for process in processes]
        assert_equal_batches({key: np.concatenate([shard[key] for shard in shards]) for key in batch}, batch)
    assert {json.dumps(iterator.get_state()) for iterator in (single, *processes)} == {json.dumps(single.get_state())}
    for iterator in (single, *processes):
        iterator.close()


def test_image_order_continues_with_a_different_process_count_and_batch_size():
    split = make_split(10)
    uninterrupted = make_train_batches(split, make_data_spec(batch_size=6))
    expected = np.concatenate([batch["index"] for batch in next_batches(uninterrupted, 6)])
    interrupted = make_train_batches(split, make_data_spec(batch_size=6))
    next_batches(interrupted, 2)
    processes = [
        make_train_batches(split, make_data_spec(batch_size=8), process_index=index, process_count=2)
        for index in range(2)
    ]
    for process in processes:
        process.set_state(interrupted.get_state())
    resumed = np.concatenate([next(process)["index"] for _ in range(3) for process in processes])
    np.testing.assert_array_equal(resumed, expected[12:36])
    for iterator in (uninterrupted, interrupted, *processes):
        iterator.close()


def test_state_of_a_different_split_or_seed_is_rejected():
    state = make_train_batches(make_split(10), make_data_spec()).get_state()
    other_images = Split(
        "train", [dataclasses.replace(record, image_id=record.image_id + 1) for record in make_split(10)]
    )
    for split in (make_split(9), other_images):  # the second has the same number of images
        with pytest.raises(DataError, match=r"split: saved [0-9a-f]+, current [0-9a-f]+"):
            make_train_batches(split, make_data_spec()).set_state(state)
    with pytest.raises(DataError, match="seed: saved 0, current 5"):
        make_train_batches(make_split(10), make_data_spec(), seed=5).set_state(state)


def test_state_takes_less_than_100_bytes_as_json():
    batches = make_train_batches(make_split(3), make_data_spec(batch_size=2))
    next(batches)
    assert len(json.dumps(batches.get_state())) < 100
    batches.close()


# --- captions ---


def test_captions_of_an_image_are_chosen_equally_often():
    for available, count in ((5, 1), (5, 2), (3, 3), (2, 5)):
        choices = [choose_captions(available, count, 0, epoch, "a.jpg") for epoch in range(available)]
        assert all(len(set(choice)) == min(available, count) for choice in choices)
        counts = np.bincount(np.concatenate(choices), minlength=available)
        assert (counts == count).all()


def test_caption_choice_depends_on_the_seed_and_the_image():
    orders = {
        tuple(choose_captions(5, 5, seed, 0, image_id)) for seed in range(4) for image_id in (*range(50), "1", "a.jpg")
    }
    assert len(orders) > 60  # of 120 orders, in 208 samples
    choices = [choose_captions(5, 1, 0, 0, image_id)[0] for image_id in range(1000)]
    assert np.bincount(choices).min() > 150


def test_captions_per_image_of_zero_selects_all_and_repeats_some_if_there_are_too_few():
    split = make_split(2, num_captions=3)
    split.records[1] = Record(split[1].image, ("1/0", "1/1"), 7)
    batches = make_train_batches(split, make_data_spec(batch_size=2, captions_per_image=0))
    batch = next(batches)
    captions = {
        int(index): sorted(map(CharacterVocabulary().decode, ids))
        for index, ids in zip(batch["index"], batch["tokens"], strict=True)
    }
    assert captions[0] == ["0/0", "0/1", "0/2"]
    assert len(captions[1]) == 3 and set(captions[1]) == {"1/0", "1/1"}
    batches.close()


# --- unreadable images ---


def test_an_unreadable_image_is_masked_and_reported_once(caplog):
    split = make_split(6, unreadable=(2,))
    batches = make_train_batches(split, make_data_spec(batch_size=3, captions_per_image=2))
    with caplog.at_level(logging.WARNING):
        collected = next_batches(batches, 6)
    masked = [(int(batch["index"][row]), row, batch) for batch in collected for row in np.flatnonzero(~batch["mask"])]
    assert [index for index, _, _ in masked] == [2, 2, 2]
    for _, row, batch in masked:  # a copy of a readable image, because black pixels would bias batch norm statistics
        images = batch["image"]
        assert any((images[row] == images[readable]).all() for readable in np.flatnonzero(batch["mask"]))
    assert list(batches.problems) == ["image 1002"]
    assert "not in a supported image format" in batches.problems["image 1002"]
    assert batches.problem_count == 3
    assert caplog.text.count("image 1002") == 1
    batches.close()


def test_images_with_missing_files_are_masked(tmp_path):
    split = make_split(3)
    split.records[0] = Record(tmp_path / "missing.jpg", ("text",), 1)
    batches = make_train_batches(split, make_data_spec(batch_size=3))
    assert next(batches)["mask"].sum() == 2
    assert list(batches.problems) == [str(tmp_path / "missing.jpg")]
    batches.close()


def test_a_split_without_readable_images_is_an_error():
    batches = make_train_batches(make_split(5, unreadable=range(5)), make_data_spec(batch_size=5))
    with pytest.raises(
        DataError, match=r"none of the first 5 images of the split train could be read, such as image 100"
    ):
        next(batches)
    batches.close()


def test_bugs_are_not_treated_as_unreadable_images():
    split = make_split(3)
    read_image, has_bug = split[1].image, threading.Event()

    def read_or_fail():
        if has_bug.is_set():
            raise RuntimeError("a bug")
        return read_image()

    split.records[1] = Record(read_or_fail, ("text",), 1)
    data = make_data_spec(batch_size=3)
    for batches in (make_train_batches(split, data), make_eval_batches(split, data)):
        # All reads fail until the bug is fixed, because a worker may read the image for a later epoch first.
        has_bug.set()
        with pytest.raises(RuntimeError, match="a bug"):
            next(batches)
        has_bug.clear()
        assert sorted(next(batches)["index"]) == [0, 1, 2]  # no image is lost
        batches.close()


# --- evaluation ---


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    num_images=st.integers(0, 13),
    process_count=st.sampled_from([1, 2, 4]),
    images_per_process=st.integers(1, 3),
    workers=st.integers(0, 2),
)
def test_evaluation_reads_each_image_once_and_in_order(num_images, process_count, images_per_process, workers):
    split, data = make_split(num_images, name="val"), make_data_spec(process_count * images_per_process, 2, workers)
    processes = [
        make_eval_batches(split, data, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    assert len({len(process) for process in processes}) == 1
    indices = []
    for shards in zip(*processes, strict=True):
        batch = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
        assert batch["image"].shape == (data.eval_batch_size, 4, 4, 3)
        assert ((batch["index"] >= 0) == batch["mask"]).all()
        assert (batch["tokens"][~batch["mask"]] == CharacterVocabulary().encode("", 8)).all()
        indices += batch["index"][batch["mask"]].tolist()
        for row in np.flatnonzero(batch["mask"]):
            index = batch["index"][row]
            assert [CharacterVocabulary().decode(ids) for ids in batch["tokens"][row]] == [f"{index}/0", f"{index}/1"]
    assert indices == list(range(num_images))


@pytest.mark.parametrize("captions_per_image", [0, 2])
def test_evaluation_supports_images_without_captions(captions_per_image):
    data = make_data_spec(batch_size=3, captions_per_image=captions_per_image)
    (batch,) = make_eval_batches(make_split(2, num_captions=0, name="test"), data)
    assert batch["mask"].tolist() == [True, True, False]
    assert (batch["tokens"] == CharacterVocabulary().encode("", 8)).all()
    assert batch["tokens"].shape == (3, max(captions_per_image, 1), 8)


def test_unreadable_evaluation_images_keep_their_index():
    batches = make_eval_batches(make_split(3, unreadable=(1,), name="val"), make_data_spec(batch_size=2))
    first, second = batches
    assert first["index"].tolist() == [0, 1] and first["mask"].tolist() == [True, False]
    assert second["index"].tolist() == [2, -1] and second["mask"].tolist() == [True, False]
    assert list(batches.problems) == ["image 1001"]


# --- errors and threads ---


def test_indivisible_batch_sizes_and_empty_splits_are_rejected():
    with pytest.raises(DataError, match=r"batch of 6 images.*4 processes.*config\.data\.batch_size"):
        make_train_batches(make_split(3), make_data_spec(batch_size=6), process_index=0, process_count=4)
    with pytest.raises(DataError, match="no images"):
        make_train_batches(make_split(0), make_data_spec())


def test_batches_are_never_overwritten():
    """On CPU, JAX may read a batch in place, without copying it, while the step runs."""
    batches = make_train_batches(make_split(6), make_data_spec())
    first = next(batches)
    copies = {key: value.copy() for key, value in first.items()}
    next_batches(batches, 5)
    assert_equal_batches(first, copies)
    batches.close()


def test_close_ends_the_threads():
    before = set(threading.enumerate())
    batches = make_train_batches(make_split(6), make_data_spec())
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in started)


def test_batches_contain_preprocessed_photographs(shared_data):
    root = str(shared_data / "coco_mini")
    data = make_data_spec(batch_size=8, source="folder", root=root, captions=("captions.json",))
    split = open_splits(data)["train"]
    batches = make_train_batches(split, data)
    batch = next(batches)
    assert batch["mask"].all()
    expected = PREPROCESSING.load(split[int(batch["index"][3])].image)
    np.testing.assert_array_equal(batch["image"][3], expected)
    batches.close()

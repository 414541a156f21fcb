"""Training resumes exactly where it stopped, on any number of processes. Evaluation reads each image once."""

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
from synthetic_splits import PREPROCESSING, Letters, assert_same_batch, data_config, make_split

from input_pipeline.batches import choose_captions, eval_batches, train_batches
from input_pipeline.context import ContextCaptions
from input_pipeline.packing import pack_captions
from input_pipeline.records import DataError, Split
from input_pipeline.sources import open_splits


def train(split, data, seed=0, **processes):
    return train_batches(split, PREPROCESSING, Letters(), data, seed, **processes)


def evaluate(split, data, **processes):
    return eval_batches(split, PREPROCESSING, Letters(), data, **processes)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def test_batches_pair_images_with_their_captions():
    data = data_config(batch_size=5, captions_per_image=2)
    batches = train(make_split(9), data)
    for batch in take(batches, 4):
        assert batch["image"].shape == (5, 4, 4, 3) and batch["image"].dtype == np.uint8
        assert batch["tokens"].shape == (5, 2, 8) and batch["tokens"].dtype == np.int32
        assert batch["mask"].all() and batch["mask"].dtype == bool and batch["index"].dtype == np.int32
        for row, index in enumerate(batch["index"]):
            assert (batch["image"][row] == (index, index, 100)).all()
            texts = [Letters().decode(ids) for ids in batch["tokens"][row]]
            assert {text.split("/")[0] for text in texts} == {str(index)}
            assert len(set(texts)) == 2
    batches.close()


def test_the_arrays_of_a_batch_are_listed_with_their_dtypes():
    listed = dict(re.findall(r"^    (\w+) +(\w+) .*\]: ", inspect.getmodule(train_batches).__doc__, flags=re.MULTILINE))
    split = make_split(9)
    context = ContextCaptions(dict.fromkeys(split.image_ids, ()), split, 2, Letters(), 8)
    batches = train(split, data_config(batch_size=4), context=context)
    (batch,) = take(batches, 1)
    batches.close()
    batch |= pack_captions(batch["tokens"], batch["mask"], rows=2)
    assert set(listed) == {*batch, "features"}
    assert {name: str(array.dtype) for name, array in batch.items()}.items() <= listed.items()


def test_each_epoch_is_a_different_order_of_all_images():
    batches = train(make_split(12), data_config())
    epochs = [np.concatenate([batch["index"] for batch in take(batches, 3)]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert batches.epoch == 3.0
    batches.close()


def test_the_order_depends_on_the_seed():
    orders = []
    for seed in (0, 0, 1, 2**40):
        batches = train(make_split(40), data_config(batch_size=40), seed)
        orders.append([tuple(batch["index"]) for batch in take(batches, 2)])
        batches.close()
    assert orders[0] == orders[1]
    # No epoch of one seed equals any epoch of the other.
    assert len({order for run in orders[1:] for order in run}) == 6


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    images=st.integers(1, 11),
    batch_size=st.integers(1, 6),
    captions=st.integers(0, 4),
    workers=st.integers(0, 3),
    stop=st.integers(0, 7),
    more=st.integers(1, 4),
)
def test_resuming_at_any_step_equals_an_uninterrupted_run(images, batch_size, captions, workers, stop, more):
    split, data = make_split(images), data_config(batch_size, captions, workers)
    uninterrupted = train(split, data)
    expected = take(uninterrupted, stop + more)
    first = train(split, data)
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    resumed = train(split, data)
    next(resumed)  # the iterator may have started before its state is set
    resumed.set_state(state)
    for batch in expected[stop:]:
        assert_same_batch(next(resumed), batch)
    for iterator in (uninterrupted, first, resumed):
        iterator.close()


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_same_global_batches(process_count):
    split, data = make_split(10), data_config(batch_size=8, captions_per_image=2)
    alone = train(split, data)
    parts = [train(split, data, process_index=p, process_count=process_count) for p in range(process_count)]
    for batch in take(alone, 5):
        shards = [next(part) for part in parts]
        assert_same_batch({key: np.concatenate([shard[key] for shard in shards]) for key in batch}, batch)
    assert {json.dumps(iterator.get_state()) for iterator in (alone, *parts)} == {json.dumps(alone.get_state())}
    for iterator in (alone, *parts):
        iterator.close()


def test_a_run_may_resume_with_other_processes_and_batch_sizes():
    split = make_split(10)
    alone = train(split, data_config(batch_size=6))
    sequence = np.concatenate([batch["index"] for batch in take(alone, 6)])
    first = train(split, data_config(batch_size=6))
    take(first, 2)
    parts = [train(split, data_config(batch_size=8), process_index=p, process_count=2) for p in range(2)]
    for part in parts:
        part.set_state(first.get_state())
    resumed = np.concatenate([next(part)["index"] for _ in range(3) for part in parts])
    np.testing.assert_array_equal(resumed, sequence[12:36])
    for iterator in (alone, first, *parts):
        iterator.close()


def test_state_of_other_data_is_rejected():
    state = train(make_split(10), data_config()).get_state()
    other_images = Split(
        "train", [dataclasses.replace(record, image_id=record.image_id + 1) for record in make_split(10)]
    )
    for other in (make_split(9), other_images):  # the number of images is not sufficient
        with pytest.raises(DataError, match=r"split: saved [0-9a-f]+, current [0-9a-f]+"):
            train(other, data_config()).set_state(state)
    with pytest.raises(DataError, match="seed: saved 0, current 5"):
        train(make_split(10), data_config(), seed=5).set_state(state)


def test_state_after_the_first_step_of_a_large_run_is_small():
    batches = train(make_split(3), data_config(batch_size=2))
    next(batches)
    assert len(json.dumps(batches.get_state())) < 100
    batches.close()


# --- captions ---


def test_captions_are_chosen_equally_often():
    for available, count in ((5, 1), (5, 2), (3, 3), (2, 5)):
        choices = [choose_captions(available, count, 0, epoch, "a.jpg") for epoch in range(available)]
        assert all(len(set(chosen)) == min(available, count) for chosen in choices)
        counts = np.bincount(np.concatenate(choices), minlength=available)
        assert (counts == count).all()


def test_the_choice_of_captions_depends_on_seed_and_image():
    orders = {
        tuple(choose_captions(5, 5, seed, 0, image_id)) for seed in range(4) for image_id in (*range(50), "1", "a.jpg")
    }
    assert len(orders) > 60  # of 120 orders, in 208 samples
    first = [choose_captions(5, 1, 0, 0, image_id)[0] for image_id in range(1000)]
    assert np.bincount(first).min() > 150


def test_zero_selects_all_captions_and_missing_ones_are_repeated():
    split = make_split(2, captions=3)
    split.records[1] = type(split[1])(split[1].image, ("1/0", "1/1"), 7)
    batches = train(split, data_config(batch_size=2, captions_per_image=0))
    batch = next(batches)
    texts = {
        int(i): sorted(map(Letters().decode, rows)) for i, rows in zip(batch["index"], batch["tokens"], strict=True)
    }
    assert texts[0] == ["0/0", "0/1", "0/2"]
    assert len(texts[1]) == 3 and set(texts[1]) == {"1/0", "1/1"}
    batches.close()


# --- unreadable images ---


def test_an_unreadable_image_is_masked_and_reported_once(caplog):
    split = make_split(6, bad=(2,))
    batches = train(split, data_config(batch_size=3, captions_per_image=2))
    with caplog.at_level(logging.WARNING):
        collected = take(batches, 6)
    masked = [(int(batch["index"][row]), row, batch) for batch in collected for row in np.flatnonzero(~batch["mask"])]
    assert [index for index, _, _ in masked] == [2, 2, 2]
    for _, row, batch in masked:  # pixels of a readable row, because black ones would bias a batch norm
        assert any((batch["image"][row] == batch["image"][other]).all() for other in np.flatnonzero(batch["mask"]))
    assert list(batches.problems) == ["image 1002"]
    assert "not in a supported image format" in batches.problems["image 1002"]
    assert batches.problem_count == 3
    assert caplog.text.count("image 1002") == 1
    batches.close()


def test_missing_files_are_masked(tmp_path):
    split = make_split(3)
    split.records[0] = type(split[0])(tmp_path / "gone.jpg", ("text",), 1)
    batches = train(split, data_config(batch_size=3))
    assert next(batches)["mask"].sum() == 2
    assert list(batches.problems) == [str(tmp_path / "gone.jpg")]
    batches.close()


def test_a_run_without_readable_images_stops():
    batches = train(make_split(5, bad=range(5)), data_config(batch_size=5))
    with pytest.raises(DataError, match=r"none of the first 5 images could be read:\n  image 100"):
        next(batches)
    batches.close()


def test_bugs_are_not_treated_as_unreadable_images():
    split = make_split(3)

    good, broken = split[1].image, threading.Event()

    def sometimes():
        if broken.is_set():
            raise RuntimeError("a mistake")
        return good()

    split.records[1] = type(split[1])(sometimes, ("text",), 1)
    for batches in (train(split, data_config(batch_size=3)), evaluate(split, data_config(batch_size=3))):
        # Every read fails until the fix, because threads that read ahead may reach a later epoch first.
        broken.set()
        with pytest.raises(RuntimeError, match="a mistake"):
            next(batches)
        broken.clear()
        assert sorted(next(batches)["index"]) == [0, 1, 2]  # no image is lost
        batches.close()


# --- evaluation ---


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    images=st.integers(0, 13),
    process_count=st.sampled_from([1, 2, 4]),
    multiple=st.integers(1, 3),
    workers=st.integers(0, 2),
)
def test_evaluation_reads_each_image_once_and_in_order(images, process_count, multiple, workers):
    split, data = make_split(images, name="val"), data_config(process_count * multiple, 2, workers)
    parts = [evaluate(split, data, process_index=p, process_count=process_count) for p in range(process_count)]
    assert len({len(part) for part in parts}) == 1
    collected = []
    for shards in zip(*parts, strict=True):
        batch = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
        assert batch["image"].shape == (data.eval_batch_size, 4, 4, 3)
        assert ((batch["index"] >= 0) == batch["mask"]).all()
        assert (batch["tokens"][~batch["mask"]] == Letters().encode("", 8)).all()
        collected += batch["index"][batch["mask"]].tolist()
        for row in np.flatnonzero(batch["mask"]):
            index = batch["index"][row]
            assert [Letters().decode(ids) for ids in batch["tokens"][row]] == [f"{index}/0", f"{index}/1"]
    assert collected == list(range(images))


@pytest.mark.parametrize("captions_per_image", [0, 2])
def test_images_without_captions_can_be_captioned(captions_per_image):
    data = data_config(batch_size=3, captions_per_image=captions_per_image)
    (batch,) = evaluate(make_split(2, captions=0, name="test"), data)
    assert batch["mask"].tolist() == [True, True, False]
    assert (batch["tokens"] == Letters().encode("", 8)).all()
    assert batch["tokens"].shape == (3, max(captions_per_image, 1), 8)


def test_unreadable_images_of_an_evaluation_keep_their_index():
    batches = evaluate(make_split(3, bad=(1,), name="val"), data_config(batch_size=2))
    first, second = batches
    assert first["index"].tolist() == [0, 1] and first["mask"].tolist() == [True, False]
    assert second["index"].tolist() == [2, -1] and second["mask"].tolist() == [True, False]
    assert list(batches.problems) == ["image 1001"]


# --- errors and threads ---


def test_the_batch_size_must_be_divisible_by_the_processes():
    with pytest.raises(DataError, match=r"batch of 6 images.*4 processes.*config\.data\.batch_size"):
        train(make_split(3), data_config(batch_size=6), process_index=0, process_count=4)
    with pytest.raises(DataError, match="no images"):
        train(make_split(0), data_config())


def test_batches_are_never_overwritten():
    """JAX on CPU may use the memory of a batch without a copy while the step runs."""
    batches = train(make_split(6), data_config())
    first = next(batches)
    copies = {key: value.copy() for key, value in first.items()}
    take(batches, 5)
    assert_same_batch(first, copies)
    batches.close()


def test_close_ends_the_threads():
    before = set(threading.enumerate())
    batches = train(make_split(6), data_config())
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in started)


def test_photographs_are_read(shared_data):
    data = data_config(batch_size=8, source="folder", root=str(shared_data / "coco_mini"), captions=("captions.json",))
    split = open_splits(data)["train"]
    batches = train(split, data)
    batch = next(batches)
    assert batch["mask"].all()
    expected = PREPROCESSING.load(split[int(batch["index"][3])].image)
    np.testing.assert_array_equal(batch["image"][3], expected)
    batches.close()

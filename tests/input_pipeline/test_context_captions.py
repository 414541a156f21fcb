"""Context in batches: captions of the neighbours of an image, never its own, and deterministic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, Letters, assert_same_batch, data_config, make_split

from input_pipeline.batches import eval_batches, train_batches
from input_pipeline.context import ContextCaptions
from input_pipeline.records import DataError, Record, Split

# The neighbours of image 1000 + i are the next images. The last image has no neighbours.
NEIGHBOURS = {1000 + i: [1000 + (i + step) % 7 for step in (1, 2, 3)] for i in range(6)} | {1006: []}


def make_context(split=None, neighbours=NEIGHBOURS, max_texts=2, dropout=0.0):
    return ContextCaptions(neighbours, split or make_split(7), max_texts, Letters(), 8, dropout)


def take(batches, count):
    result = list(itertools.islice(batches, count))
    batches.close()
    return result


def train(count, context, data=None, seed=0, start=0, **processes):
    split = make_split(7)
    batches = train_batches(split, PREPROCESSING, Letters(), data or data_config(), seed, context=context, **processes)
    batches.set_state({**batches.get_state(), "images": start})
    return take(batches, count)


def texts(ids) -> list[str]:
    return [Letters().decode(row) for row in ids]


def test_batches_have_captions_of_the_neighbours_nearest_first():
    for batch in train(6, make_context()):
        assert batch["context"].shape == (4, 2, 8) and batch["context"].dtype == np.int32
        for index, ids in zip(batch["index"], batch["context"], strict=True):
            if index == 6:
                assert (ids == 1).all(), "rows without a caption have only pads"
            else:
                assert [text.split("/")[0] for text in texts(ids)] == [str((index + step) % 7) for step in (1, 2)]


def test_captions_of_a_neighbour_are_chosen_equally_often_over_the_epochs():
    context = make_context()
    captions = [texts(context.load(1000, 3, epoch)) for epoch in range(6)]
    for slot, neighbour in enumerate("12"):
        assert sorted(row[slot] for row in captions) == sorted([f"{neighbour}/{number}" for number in range(3)] * 2)
    assert captions == [texts(make_context().load(1000, 3, epoch)) for epoch in range(6)]
    other_seed, other_image = (
        [texts(make_context(neighbours=neighbours).load(image, seed, epoch)) for epoch in range(6)]
        for image, seed, neighbours in ((1000, 4, NEIGHBOURS), (1003, 3, NEIGHBOURS | {1003: [1001, 1002]}))
    )
    assert captions != other_seed and captions != other_image


def test_dropout_removes_the_context_of_some_images_in_some_epochs():
    context = make_context(dropout=0.3)
    dropped = np.array([[(context.load(i, 0, epoch) == 1).all() for i in range(1000, 1006)] for epoch in range(200)])
    assert 0.25 < dropped.mean() < 0.35
    assert dropped.mean(0).min() > 0.15 and dropped.mean(1).std() > 0.1
    assert texts(context.load(1000)) == ["1/0", "2/0"], "deterministic without a seed"


def test_context_does_not_depend_on_processes_threads_or_resuming():
    context = make_context(dropout=0.3)
    full = train(8, context)
    parts = [train(8, context, data_config(workers=0), process_index=i, process_count=2) for i in (0, 1)]
    for batch, one, two in zip(full, *parts, strict=True):
        assert_same_batch(batch, {key: np.concatenate([one[key], two[key]]) for key in batch})
    for batch, resumed in zip(full[5:], train(3, context, start=20), strict=True):
        assert_same_batch(batch, resumed)


def test_a_run_cannot_resume_with_another_context():
    split = make_split(7)

    def batches(context):
        return train_batches(split, PREPROCESSING, Letters(), data_config(), 0, context=context)

    state = batches(make_context()).get_state()
    batches(make_context()).set_state(state)
    others = (
        make_context(max_texts=1),
        make_context(dropout=0.1),
        make_context(neighbours=NEIGHBOURS | {1006: [1000]}),
        None,
    )
    for other in others:
        with pytest.raises(DataError, match=r"from different data .*context: "):
            batches(other).set_state(state)


def test_evaluation_uses_first_captions_and_padding_rows_have_none():
    val = make_split(3, name="val")
    context = make_context(neighbours={1000: [1005, 1004], 1001: [1003], 1002: []})
    (batch,) = take(eval_batches(val, PREPROCESSING, Letters(), data_config(), context=context), 2)
    assert [texts(ids) for ids in batch["context"]] == [["5/0", "4/0"], ["3/0", ""], ["", ""], ["", ""]]
    assert (batch["context"][1, 1] == 1).all() and (batch["context"][2:] == 1).all()


def test_neighbours_without_captions_are_skipped():
    records = [Record(lambda: b"", captions, number) for number, captions in enumerate([("a",), (), ("c",), ("d",)])]
    context = ContextCaptions({0: [1, 2, 3]}, Split("train", records), 2, Letters(), 8)
    assert texts(context.load(0)) == ["c", "d"]


def test_an_image_among_its_own_neighbours_is_rejected():
    with pytest.raises(DataError, match="image 1002 is among its own neighbours"):
        make_context(neighbours=NEIGHBOURS | {1002: [1001, 1002]})


def test_neighbours_outside_the_training_images_are_rejected():
    with pytest.raises(DataError, match=r"1002 has the neighbour x\.png, .*--mode=index --split=train"):
        make_context(neighbours=NEIGHBOURS | {1002: [1001, "x.png"]})

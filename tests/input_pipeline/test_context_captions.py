"""The context of each image consists of captions of its neighbours, chosen deterministically."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches, make_data_spec, make_split

from input_pipeline.batches import eval_batches, train_batches
from input_pipeline.context import ContextCaptions
from input_pipeline.records import DataError, Record, Split

# The neighbours of image 1000 + i are the next three images. The last image has no neighbours.
NEIGHBOURS = {1000 + i: [1000 + (i + step) % 7 for step in (1, 2, 3)] for i in range(6)} | {1006: []}


def make_context(neighbours=NEIGHBOURS, max_texts=2, dropout=0.0):
    return ContextCaptions(neighbours, make_split(7), max_texts, CharacterVocabulary(), 8, dropout)


def read_batches(batches, count):
    result = list(itertools.islice(batches, count))
    batches.close()
    return result


def read_train_batches(count, context, workers=2, start=0, **process_options):
    """Returns `count` batches of four images, after the first `start` images."""
    data = make_data_spec(workers=workers)
    batches = train_batches(
        make_split(7), PREPROCESSING, CharacterVocabulary(), data, seed=0, context=context, **process_options
    )
    batches.set_state({**batches.get_state(), "images": start})
    return read_batches(batches, count)


def decode_texts(ids) -> list[str]:
    return [CharacterVocabulary().decode(text_ids) for text_ids in ids]


def test_batches_contain_captions_of_the_nearest_neighbours_in_order():
    for batch in read_train_batches(6, make_context()):
        assert batch["context"].shape == (4, 2, 8) and batch["context"].dtype == np.int32
        for index, ids in zip(batch["index"], batch["context"], strict=True):
            if index == 6:
                assert (ids == 1).all(), "missing captions are all padding"
            else:
                neighbours = [text.split("/")[0] for text in decode_texts(ids)]
                assert neighbours == [str((index + step) % 7) for step in (1, 2)]


def test_captions_of_a_neighbour_are_chosen_equally_often_over_epochs():
    context = make_context()
    captions = [decode_texts(context.load(1000, 3, epoch)) for epoch in range(6)]
    for position, neighbour in enumerate("12"):
        expected = sorted([f"{neighbour}/{number}" for number in range(3)] * 2)
        assert sorted(epoch[position] for epoch in captions) == expected
    assert captions == [decode_texts(make_context().load(1000, 3, epoch)) for epoch in range(6)]
    other_seed, other_image = (
        [decode_texts(make_context(neighbours=neighbours).load(image, seed, epoch)) for epoch in range(6)]
        for image, seed, neighbours in ((1000, 4, NEIGHBOURS), (1003, 3, NEIGHBOURS | {1003: [1001, 1002]}))
    )
    assert captions != other_seed and captions != other_image


def test_dropout_removes_the_context_of_some_images_in_some_epochs():
    context = make_context(dropout=0.3)
    dropped = np.array([[(context.load(i, 0, epoch) == 1).all() for i in range(1000, 1006)] for epoch in range(200)])
    assert 0.25 < dropped.mean() < 0.35
    assert dropped.mean(0).min() > 0.15 and dropped.mean(1).std() > 0.1
    assert decode_texts(context.load(1000)) == ["1/0", "2/0"], "deterministic without a seed"


def test_context_does_not_depend_on_processes_threads_or_resuming():
    context = make_context(dropout=0.3)
    expected = read_train_batches(8, context)
    batches_by_process = [read_train_batches(8, context, workers=0, process_index=i, process_count=2) for i in (0, 1)]
    for batch, first, second in zip(expected, *batches_by_process, strict=True):
        assert_equal_batches({key: np.concatenate([first[key], second[key]]) for key in batch}, batch)
    for batch, resumed in zip(expected[5:], read_train_batches(3, context, start=20), strict=True):
        assert_equal_batches(resumed, batch)


def test_a_run_cannot_resume_with_a_different_context():
    split = make_split(7)

    def make_batches(context):
        return train_batches(split, PREPROCESSING, CharacterVocabulary(), make_data_spec(), 0, context=context)

    state = make_batches(make_context()).get_state()
    make_batches(make_context()).set_state(state)
    different_contexts = (
        make_context(max_texts=1),
        make_context(dropout=0.1),
        make_context(neighbours=NEIGHBOURS | {1006: [1000]}),
        None,
    )
    for context in different_contexts:
        with pytest.raises(DataError, match=r"from different data .*context: "):
            make_batches(context).set_state(state)


def test_evaluation_uses_the_first_caption_of_each_neighbour_and_pads_missing_ones():
    split = make_split(3, name="val")
    context = make_context(neighbours={1000: [1005, 1004], 1001: [1003], 1002: []})
    batches = eval_batches(split, PREPROCESSING, CharacterVocabulary(), make_data_spec(), context=context)
    (batch,) = read_batches(batches, 2)
    assert [decode_texts(ids) for ids in batch["context"]] == [["5/0", "4/0"], ["3/0", ""], ["", ""], ["", ""]]
    assert (batch["context"][1, 1] == 1).all() and (batch["context"][2:] == 1).all()


def test_neighbours_without_captions_are_skipped():
    records = [Record(lambda: b"", captions, number) for number, captions in enumerate([("a",), (), ("c",), ("d",)])]
    context = ContextCaptions({0: [1, 2, 3]}, Split("train", records), 2, CharacterVocabulary(), 8)
    assert decode_texts(context.load(0)) == ["c", "d"]


def test_an_image_that_is_its_own_neighbour_is_rejected():
    with pytest.raises(DataError, match="image 1002 is among its own neighbours"):
        make_context(neighbours=NEIGHBOURS | {1002: [1001, 1002]})


def test_neighbours_outside_the_training_split_are_rejected():
    with pytest.raises(DataError, match=r"1002 has the neighbour x\.png, .*--mode=index --split=train"):
        make_context(neighbours=NEIGHBOURS | {1002: [1001, "x.png"]})

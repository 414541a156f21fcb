"""Processes give the same batches as threads, end with the iterator, and are reported if they die."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from synthetic_splits import (
    PREPROCESSING,
    CharacterVocabulary,
    assert_equal_batches,
    make_data_spec,
    make_png,
    make_split,
)

from input_pipeline import decoding_process
from input_pipeline.batches import eval_batches, train_batches
from input_pipeline.decoding_process import DecodingProcess, DecodingProcessError, Request
from input_pipeline.images import ImageError
from input_pipeline.inputs import Pixels
from input_pipeline.pixel_readers import PixelsFromProcesses, decode_in_order
from input_pipeline.records import Record, Split


@pytest.fixture
def split(tmp_path) -> Split:
    """Images in files, from functions and of each kind one that cannot be read."""
    records = list(make_split(21).records)
    for index in range(8):
        path = tmp_path / f"{index}.png"
        path.write_bytes(make_png(index) if index != 2 else b"not an image")
        records[index] = Record(path, records[index].captions, index)
    records[9] = Record(tmp_path / "missing.png", ("text",), 9)

    def fail():
        raise OSError("the network is down")

    records[10] = Record(fail, ("text",), 10)
    return Split("train", records)


def make_batches(split: Split, worker_type: str, workers: int = 2):
    data = make_data_spec(batch_size=6, workers=workers, worker_type=worker_type)
    return train_batches(split, PREPROCESSING, CharacterVocabulary(), data, 0)


def test_processes_give_the_same_batches_as_threads_and_resume_with_another_number(split):
    threads, processes = make_batches(split, "threads"), make_batches(split, "processes")
    for _ in range(5):
        assert_equal_batches(next(processes), next(threads))
    resumed = make_batches(split, "processes", workers=1)
    resumed.set_state(processes.get_state())
    processes.close()
    for _ in range(3):
        assert_equal_batches(next(resumed), next(threads))
    assert processes.problems.items() <= threads.problems.items() and len(threads.problems) == 3
    resumed.close()
    threads.close()


def test_evaluation_reads_each_image_once(split):
    data = make_data_spec(batch_size=4, worker_type="processes")
    batches = list(eval_batches(split, PREPROCESSING, CharacterVocabulary(), data))
    assert np.concatenate([batch["index"] for batch in batches])[:21].tolist() == list(range(21))


@pytest.mark.parametrize("worker_type", ["threads", "processes"])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_decoded_in_order(split, worker_type, workers):
    data = make_data_spec(workers=workers, worker_type=worker_type)
    indices = [*range(20, -1, -1)] * 2
    expected = Pixels(split, PREPROCESSING)
    for index, image in zip(indices, decode_in_order(split, PREPROCESSING, data, indices), strict=True):
        if isinstance(image, ImageError):
            with pytest.raises(ImageError) as error:
                expected.load(index)
            assert str(image) == str(error.value)
        else:
            np.testing.assert_array_equal(image, expected.load(index))


def test_closing_ends_the_processes_and_reading_starts_them_again(split):
    pixels = PixelsFromProcesses(split, PREPROCESSING, 2)
    pixels.load(1)
    (process,) = [process for process in pixels._idle.queue if process is not None]
    pixels.close()
    pixels.close()
    assert process._process.poll() == 0
    assert pixels.load(1).shape == (4, 4, 3)
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        pixels.load(9)
    pixels.close()


def test_a_process_that_dies_is_reported_and_replaced(split):
    pixels = PixelsFromProcesses(split, PREPROCESSING, 1)
    pixels.load(1)
    (process,) = pixels._idle.queue
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(DecodingProcessError, match=r"ended by SIGKILL.*config\.data\.workers"):
        pixels.load(1)
    assert pixels.load(1).shape == (4, 4, 3)
    pixels.close()


def test_processes_started_by_several_threads_share_one_lock_file(monkeypatch):
    """Otherwise they would decode large images at the same time."""
    decoding_process._cached_lock_file.cache_clear()
    create = decoding_process._create_shared_file
    monkeypatch.setattr(decoding_process, "_create_shared_file", lambda: time.sleep(0.1) or create())
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: decoding_process._open_lock_file(), range(4)))
    assert len(set(map(id, files))) == 1


def test_signals_for_the_training_process_do_not_end_a_process():
    with contextlib.closing(DecodingProcess(4 * 4 * 3)) as process:
        request = Request([make_png(7)], ["seven"], PREPROCESSING)
        process.decode(request)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process._process.pid, number)
        pixels, problems = process.decode(request)
        assert not problems and (pixels[0, 0, 0] == (7, 7, 100)).all()


def test_errors_other_than_unreadable_images_are_reported():
    with contextlib.closing(DecodingProcess(4 * 4 * 3)) as process:
        requests = [Request([Path("a.png")] * 2, ["a"], PREPROCESSING), Request([Path("a")], ["a"], PREPROCESSING)]
        with pytest.raises(DecodingProcessError, match="ValueError"):
            process.decode(requests[0])
        assert process.decode(requests[1])[1] == {0: "no such file"}  # the process continues

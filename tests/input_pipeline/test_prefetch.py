"""Prefetching is transparent: batches, state, errors and the end of iteration are those of the inner iterator."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from synthetic_splits import PREPROCESSING, Letters, assert_same_batch, data_config, make_split

from input_pipeline.batches import train_batches
from input_pipeline.prefetch import prefetch_to_device


def train():
    return train_batches(make_split(9), PREPROCESSING, Letters(), data_config(), 0)


def prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


class Counter:
    """Iterates over 0, 1, 2, ... with a state; can fail or end at a number."""

    def __init__(self, fail_at=None, end_at=None):
        self.number, self.fail_at, self.end_at = 0, fail_at, end_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.fail_at:
            raise OSError(f"disk gone at {self.number}")
        if self.number == self.end_at:
            raise StopIteration
        self.number += 1
        return self.number - 1

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


@pytest.mark.parametrize("size", [0, 1, 4])
def test_batches_and_states_equal_the_inner_iterator(size):
    inner = train()
    with prefetch_to_device(train(), jax.device_put, size) as ahead:
        assert ahead.get_state() == inner.get_state()
        for _ in range(6):
            batch = next(ahead)
            assert isinstance(batch["image"], jax.Array)
            assert_same_batch(jax.device_get(batch), next(inner))
            assert ahead.get_state() == inner.get_state()
    inner.close()


def test_state_is_that_of_the_last_consumed_batch():
    inner = Counter()
    with prefetch_to_device(inner, None, 5) as ahead:
        assert next(ahead) == 0
        deadline = time.time() + 5
        while inner.number < 6 and time.time() < deadline:
            time.sleep(0.01)
        assert inner.number >= 6
        assert ahead.get_state() == {"number": 1}
        ahead.set_state({"number": 100})
        assert [next(ahead), next(ahead)] == [100, 101]
        assert ahead.get_state() == {"number": 102}


@pytest.mark.parametrize("size", [0, 3])
def test_errors_reach_the_consumer_in_order(size):
    ahead = prefetch_to_device(Counter(fail_at=2), None, size)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="disk gone at 2"):
        next(ahead)
    ahead.close()


def test_errors_of_put_reach_the_consumer():
    def put(number):
        raise ValueError("no room")

    ahead = prefetch_to_device(Counter(), put, 2)
    with pytest.raises(ValueError, match="no room"):
        next(ahead)
    ahead.close()


@pytest.mark.parametrize("size", [0, 1, 3])
def test_iteration_stops_permanently(size):
    ahead = prefetch_to_device(Counter(end_at=4), None, size)
    assert list(ahead) == [0, 1, 2, 3]
    assert next(ahead, "ended") == "ended"
    ahead.set_state({"number": 3})
    assert list(ahead) == [3]


def test_close_ends_the_thread_even_if_its_queue_is_full():
    before = prefetch_threads()
    ahead = prefetch_to_device(Counter(), None, 1)
    next(ahead)
    assert prefetch_threads() == before + 1
    ahead.close()
    ahead.close()
    assert prefetch_threads() == before
    assert next(ahead, "ended") == "ended"


def test_a_garbage_collected_iterator_ends_its_thread():
    before = prefetch_threads()
    ahead = prefetch_to_device(Counter(), None, 1)
    next(ahead)
    del ahead
    gc.collect()
    assert prefetch_threads() == before


def test_attributes_of_the_inner_iterator_are_accessible():
    with prefetch_to_device(train(), None, 1) as ahead:
        next(ahead)
        assert ahead.problems == {}
        assert np.isclose(ahead.batch_size, 4)
        with pytest.raises(AttributeError):
            ahead.nothing  # noqa: B018


@pytest.mark.slow
def test_a_program_without_close_exits_cleanly():
    program = textwrap.dedent("""
        import sys
        sys.path[:0] = [sys.argv[1], sys.argv[2]]
        import jax
        from input_pipeline.prefetch import prefetch_to_device
        from test_prefetch import train
        batches = prefetch_to_device(train(), jax.device_put, 4)
        next(batches)
        raise SystemExit(7)
    """)
    here = Path(__file__).resolve()
    command = [sys.executable, "-c", program, str(here.parent), str(here.parents[2])]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (process.returncode, process.stderr) == (7, "")

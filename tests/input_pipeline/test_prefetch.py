"""A prefetching iterator reproduces the batches, states, errors and end of the inner iterator."""

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
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches, make_data_spec, make_split

from input_pipeline.batches import train_batches
from input_pipeline.prefetch import prefetch_to_device


def make_train_batches():
    return train_batches(make_split(9), PREPROCESSING, CharacterVocabulary(), make_data_spec(), 0)


def count_prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


class Counter:
    """Iterates over 0, 1, 2, ... with a state. It can raise an error or end at a given number."""

    def __init__(self, fail_at=None, end_at=None):
        self.number, self.fail_at, self.end_at = 0, fail_at, end_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.fail_at:
            raise OSError(f"read error at {self.number}")
        if self.number == self.end_at:
            raise StopIteration
        self.number += 1
        return self.number - 1

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


@pytest.mark.parametrize("size", [0, 1, 4])
def test_batches_and_states_match_the_inner_iterator(size):
    inner = make_train_batches()
    with prefetch_to_device(make_train_batches(), jax.device_put, size) as prefetched:
        assert prefetched.get_state() == inner.get_state()
        for _ in range(6):
            batch = next(prefetched)
            assert isinstance(batch["image"], jax.Array)
            assert_equal_batches(jax.device_get(batch), next(inner))
            assert prefetched.get_state() == inner.get_state()
    inner.close()


def test_state_belongs_to_the_last_consumed_batch():
    inner = Counter()
    with prefetch_to_device(inner, None, 5) as prefetched:
        assert next(prefetched) == 0
        deadline = time.time() + 5
        while inner.number < 6 and time.time() < deadline:
            time.sleep(0.01)
        assert inner.number >= 6
        assert prefetched.get_state() == {"number": 1}
        prefetched.set_state({"number": 100})
        assert [next(prefetched), next(prefetched)] == [100, 101]
        assert prefetched.get_state() == {"number": 102}


@pytest.mark.parametrize("size", [0, 3])
def test_errors_are_raised_after_the_preceding_batches(size):
    prefetched = prefetch_to_device(Counter(fail_at=2), None, size)
    assert [next(prefetched), next(prefetched)] == [0, 1]
    with pytest.raises(OSError, match="read error at 2"):
        next(prefetched)
    prefetched.close()


def test_errors_during_transfer_are_raised():
    def put(number):
        raise ValueError("out of memory")

    prefetched = prefetch_to_device(Counter(), put, 2)
    with pytest.raises(ValueError, match="out of memory"):
        next(prefetched)
    prefetched.close()


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_exhausted_iterator_remains_exhausted_until_its_state_is_set(size):
    prefetched = prefetch_to_device(Counter(end_at=4), None, size)
    assert list(prefetched) == [0, 1, 2, 3]
    assert next(prefetched, "ended") == "ended"
    prefetched.set_state({"number": 3})
    assert list(prefetched) == [3]


def test_close_ends_the_thread_even_if_its_queue_is_full():
    initial_count = count_prefetch_threads()
    prefetched = prefetch_to_device(Counter(), None, 1)
    next(prefetched)
    assert count_prefetch_threads() == initial_count + 1
    prefetched.close()
    prefetched.close()
    assert count_prefetch_threads() == initial_count
    assert next(prefetched, "ended") == "ended"


def test_garbage_collection_of_the_iterator_ends_its_thread():
    initial_count = count_prefetch_threads()
    prefetched = prefetch_to_device(Counter(), None, 1)
    next(prefetched)
    del prefetched
    gc.collect()
    assert count_prefetch_threads() == initial_count


def test_attributes_of_the_inner_iterator_are_accessible():
    with prefetch_to_device(make_train_batches(), None, 1) as prefetched:
        next(prefetched)
        assert prefetched.problems == {}
        assert np.isclose(prefetched.batch_size, 4)
        assert not hasattr(prefetched, "no_such_attribute")


@pytest.mark.slow
def test_a_program_without_close_exits_cleanly():
    program = textwrap.dedent("""
        import sys
        sys.path[:0] = [sys.argv[1], sys.argv[2]]
        import jax
        from input_pipeline.prefetch import prefetch_to_device
        from test_prefetch import make_train_batches
        batches = prefetch_to_device(make_train_batches(), jax.device_put, 4)
        next(batches)
        raise SystemExit(7)
    """)
    path = Path(__file__).resolve()
    command = [sys.executable, "-c", program, str(path.parent), str(path.parents[2])]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (process.returncode, process.stderr) == (7, "")

"""The soak benchmark: growth of the resources of a training process."""

from __future__ import annotations

import json
import os
import sys
import threading

import numpy as np
import pytest

from benchmarks.soak import Sample, compare_growth, compute_growth, count_evaluations, read_sample


def test_growth_is_a_slope_that_ignores_peaks_and_constant_offsets():
    seconds = np.arange(0.0, 2700.0, 5.0)
    values = 1000 + seconds / 600 * 3  # 3 MB per ten minutes
    values[::7] += 200  # evaluations
    assert compute_growth(seconds, values) == pytest.approx(3, rel=0.05)
    assert compute_growth(seconds, np.full(len(seconds), 12.0)) == 0


def test_growth_requires_two_samples():
    with pytest.raises(ValueError, match="two samples"):
        compute_growth([0.0], [1.0])


def test_ratio_is_limit_over_growth_and_bounded_if_nothing_grows(capsys):
    samples = [Sample(60.0 * minute, 500 + minute, 400 + minute / 5, 20, 30 - minute) for minute in range(40)]
    cells = compare_growth(samples)
    assert cells["anonymous MB"]["ratio"] == pytest.approx(0.5)  # 2 MB per ten minutes, where 1 is allowed
    assert cells["threads"]["ratio"] == cells["descriptors"]["ratio"] == 100
    assert "anonymous MB: 400.0 at first, 407.8 at last, +2.000 per 10 minutes" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="/proc exists only on Linux")
def test_a_sample_counts_memory_threads_and_descriptors():
    before = read_sample(os.getpid())
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    with open(os.devnull) as _:
        memory = np.ones(64 * 2**20, np.uint8)
        after = read_sample(os.getpid())
    release.set()
    thread.join()
    assert after.threads == before.threads + 1
    assert after.descriptors == before.descriptors + 1
    assert after.anonymous_mb - before.anonymous_mb == pytest.approx(64, abs=16)
    assert after.resident_mb >= after.anonymous_mb
    assert memory.all()


def test_evaluations_are_counted_in_the_metrics_file(tmp_path):
    assert count_evaluations(tmp_path) == 0
    rows = [{"step": step, "split": split, "values": {}} for step in (1, 2) for split in ("train", "val")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert count_evaluations(tmp_path) == 2

"""The soak benchmark: growth of the resources of a training process."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.soak import Sample, compare_growth, compute_growth, count_evaluations, find_lows, read_sample


def test_growth_is_a_slope_that_ignores_peaks_and_constant_offsets():
    seconds = np.arange(0.0, 2700.0, 5.0)
    values = 1000 + seconds / 600 * 3  # 3 MB per ten minutes
    values[::7] += 200  # evaluations
    assert compute_growth(seconds, values) == pytest.approx(3, rel=0.05)
    assert compute_growth(seconds, np.full(len(seconds), 12.0)) == 0


def test_growth_requires_two_samples():
    with pytest.raises(ValueError, match="two samples"):
        compute_growth([0.0], [1.0])


def test_lows_of_the_intervals_between_evaluations_are_compared_with_the_limit(capsys):
    samples = [
        Sample(float(second), 500.0, 400 + second / 300 + 90 * (second % 60 < 50), 20, 30 - second // 60, second // 240)
        for second in range(2400)
    ]
    lows = find_lows(samples, "anonymous_mb")
    assert lows == [(240.0 * index + 50, 400 + (240 * index + 50) / 300) for index in range(10)]
    cells = compare_growth(samples)
    assert cells["anonymous MB"]["ratio"] == pytest.approx(0.5)  # 2 MB per ten minutes, where 1 is allowed
    assert cells["threads"]["ratio"] == cells["descriptors"]["ratio"] == 100
    assert "anonymous MB: 400, 401, 402, 403, 403, 404, 405, 406, 407, 407; +2.000 per" in capsys.readouterr().out


def test_an_interval_with_few_samples_is_ignored():
    samples = [Sample(float(second), 500.0, 400.0, 20, 30, second // 200) for second in range(450)]
    assert [seconds for seconds, _ in find_lows(samples, "threads")] == [0.0, 200.0]


# A process without other threads, which could end between two samples, acquires one more of each when it is told to.
GROWING_PROCESS = """
import os, sys, threading
release = threading.Event()
print("before", flush=True)
sys.stdin.readline()
threading.Thread(target=release.wait).start()
file, memory = open(os.devnull), bytearray(b"1") * (64 * 2**20)
print("after", flush=True)
sys.stdin.readline()
release.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc exists only on Linux")
def test_a_sample_counts_memory_threads_and_descriptors():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", GROWING_PROCESS], **pipes) as process:
        assert process.stdout.readline() == "before\n"
        before = read_sample(process.pid)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "after\n"
        after = read_sample(process.pid)
        process.communicate("\n")
    assert after.threads == before.threads + 1
    assert after.descriptors == before.descriptors + 1
    assert after.anonymous_mb - before.anonymous_mb == pytest.approx(64, abs=16)
    assert after.resident_mb >= after.anonymous_mb


def test_evaluations_are_counted_in_the_metrics_file(tmp_path):
    assert count_evaluations(tmp_path) == 0
    rows = [{"step": step, "split": split, "values": {}} for step in (1, 2) for split in ("train", "val")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert count_evaluations(tmp_path) == 2

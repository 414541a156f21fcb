"""The load from other processes, read from /proc, decides whether the figures of a benchmark are final."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import conditions
from benchmarks.alternate import Seconds, Side, alternate, compare, print_result
from benchmarks.conditions import (
    Conditions,
    Load,
    ProcessTimes,
    Sample,
    compute_load,
    describe_load,
    find_processor_name,
    find_vector_extensions,
    is_final,
    list_usable_cores,
    parse_core_times,
    parse_process_times,
    sum_descendants,
)

#        user nice system idle iowait irq softirq steal guest guest_nice
STAT = """\
cpu  3300 30 550 99999 77 2 30 400 100 0
cpu0 1100 10 250 50000 70 1 10 100 100 0
cpu1 2200 20 300 49999 7 1 20 300 0 0
intr 1 2 3
ctxt 12345
"""
SPIN = "import time\nstart = time.process_time()\nwhile time.process_time() - start < 0.2: pass"
SIDE = "from benchmarks.alternate import serve\nserve(lambda: sum(range(1000)), threads=3)"


def make_process_stat(process: int, parent: int, name: str, times: tuple[int, int, int, int]) -> str:
    return f"{process} ({name}) S {parent} 1 1 0 -1 4194560 9 9 9 9 {' '.join(map(str, times))} 20 0 1 0 555 1000 10\n"


def test_busy_time_excludes_idle_and_waiting_time_and_counts_guests_once():
    assert parse_core_times(STAT, [0, 1], 100) == (33.0 + 0.3 + 5.5 + 0.02 + 0.3 + 4.0, 4.0)
    assert parse_core_times(STAT, [1], 100) == (22.0 + 0.2 + 3.0 + 0.01 + 0.2 + 3.0, 3.0)


def test_the_sum_over_all_cores_is_that_of_the_first_line():
    total = [int(value) for value in STAT.splitlines()[0].split()[1:9]]
    assert parse_core_times(STAT, [0, 1], 100).busy == pytest.approx((sum(total) - total[3] - total[4]) / 100)


def test_a_missing_core_is_an_error():
    with pytest.raises(ValueError, match="core 2"):
        parse_core_times(STAT, [0, 1, 2], 100)


@pytest.mark.parametrize("name", ["python", "a b", "x) S 1 (y"])
def test_process_times_include_those_of_children_that_have_exited(name):
    text = make_process_stat(42, 7, name, (100, 20, 3, 4))
    assert parse_process_times(text, 100) == (42, 7, pytest.approx(1.27))


def test_descendants_are_summed_over_generations():
    processes = [
        ProcessTimes(1, 0, 100.0),
        ProcessTimes(10, 1, 1.0),
        ProcessTimes(12, 11, 4.0),  # a grandchild, listed before its parent
        ProcessTimes(11, 10, 2.0),
        ProcessTimes(20, 1, 50.0),
    ]
    assert sum_descendants(processes, 10) == 7.0


def test_load_is_the_busy_time_of_others_as_a_fraction_of_all_cores():
    periods = [
        (Sample(wall=0, busy=100, stolen=5, own=10), Sample(wall=4, busy=107, stolen=5.5, own=16)),
        (Sample(wall=50, busy=900, stolen=9, own=16), Sample(wall=56, busy=911, stolen=9.5, own=25)),
    ]
    assert compute_load(periods, cores=2) == pytest.approx((3 / 20, 1 / 20))


def test_load_is_never_negative_and_unknown_without_rounds():
    assert compute_load([(Sample(0, 1.0, 0, 0), Sample(1, 2.0, 0, 1.01))], 2) == (0, 0)
    assert compute_load([], 2) is None


def test_a_tenth_of_the_cores_is_the_limit():
    assert is_final(Load(0.1, 0.02)) is True
    assert is_final(Load(0.11, 0.0)) is False
    assert is_final(None) is None
    assert describe_load(Load(0.234, 0.05), 2).startswith(
        "Not a final figure: other processes used 23.4% of the 2 cores"
    )
    assert "5.0% stolen by the hypervisor" in describe_load(Load(0.234, 0.05), 2)
    assert describe_load(Load(0.01, 0.0), 2).startswith("Final: other processes used 1.0%")
    assert "unknown" in describe_load(None, 2)


def test_processor_and_vector_extensions_are_read_from_cpuinfo():
    x86 = "processor\t: 0\nmodel name\t: EPYC 9R14\nflags\t\t: fpu sse2 avx avx2 avx512f avx512vl\n"
    assert find_processor_name(x86) == "EPYC 9R14"
    assert find_vector_extensions(x86) == ["avx2", "avx512f"]
    assert find_vector_extensions("Features\t: fp asimd sve bf16\n") == ["asimd", "sve", "bf16"]
    assert find_vector_extensions("") == []
    assert find_processor_name("")


def test_own_child_processes_are_not_other_processes(monkeypatch, tmp_path, capsys):
    """A /proc in which only a child of this process runs."""
    monkeypatch.setattr(conditions, "PROC", tmp_path)
    monkeypatch.setattr(conditions.os, "getpid", lambda: 10)
    monkeypatch.setattr(conditions, "list_usable_cores", lambda: [0, 1])
    ticks_per_second = conditions.os.sysconf("SC_CLK_TCK")

    def write(busy: int, own: int) -> None:
        lines = [f"cpu{core} {busy * ticks_per_second} 0 0 0 0 0 0 0 0 0\n" for core in (0, 1)]
        (tmp_path / "stat").write_text("".join(lines))
        for process, parent, seconds in ((10, 1, 0), (11, 10, own)):
            (tmp_path / str(process)).mkdir(exist_ok=True)
            text = make_process_stat(process, parent, "python", (seconds * ticks_per_second, 0, 0, 0))
            (tmp_path / str(process) / "stat").write_text(text)

    measured = Conditions()
    write(busy=5, own=1)
    with measured.measured():
        write(busy=8, own=7)  # 2 cores x 3 s, all of which the child took
    assert measured.load.other == 0
    with measured.measured():
        write(busy=100, own=7)
    assert measured.report()["final"] is False
    assert "Not a final figure" in capsys.readouterr().out


def test_without_proc_it_is_unknown_whether_figures_are_final(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(conditions, "PROC", tmp_path / "missing")
    unknown = Conditions()
    with unknown.measured():
        pass
    report = unknown.report()
    assert report["final"] is None and report["conditions"]["other_processes"] is None
    assert "is unknown" in capsys.readouterr().out


@pytest.mark.skipif(not (conditions.PROC / "stat").exists(), reason="the system has no /proc/stat")
def test_the_load_of_this_machine_can_be_read():
    measured = Conditions()
    with measured.measured():
        subprocess.run([sys.executable, "-c", SPIN], check=True)
    before, after = measured._periods[0]
    assert after.own - before.own >= 0.15
    assert 0 <= measured.load.other <= 1.1 and measured.load.stolen >= 0


def test_the_json_line_says_whether_figures_are_final(capsys):
    seconds = {"ours": Seconds(0.5, 0.9), "torch": Seconds(0.6, 1.2)}
    print_result("encoder", compare(seconds, 16), "images/s", Conditions())
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "load average" in first and "usable cores" in first
    result = json.loads(last)
    assert result["final"] is None  # nothing was measured
    assert result["conditions"]["threads"] == len(list_usable_cores())
    assert result["ratio"] == 1.2 and result["cells"]["torch"]["ours_cpu_seconds"] == 0.9


def test_sides_report_their_threads(tmp_path, monkeypatch):
    (tmp_path / "trivial_side.py").write_text(SIDE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{conditions.Path(__file__).parents[1]}")
    side = Side(["trivial_side"])
    try:
        assert side.threads == 3
        assert alternate({"ours": side}, 2, Conditions())["ours"].wall < 1
    finally:
        side.close()

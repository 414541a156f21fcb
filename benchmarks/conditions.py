"""Conditions of a measurement: the processor, and how much of its cores other processes took.

A benchmark creates one `Conditions` object, which prints the conditions, encloses its timed rounds with `measured()`,
and adds `report()` to its JSON. A figure is final if other processes took at most a tenth of the cores' time during
those rounds. The load is read from /proc, so on systems without it (macOS, Windows), `final` is null.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_OTHER_FRACTION = 0.1  # of the cores' time
PROC = Path("/proc")
# Flags (x86) and features (ARM) of processors that affect the speed of matrix products.
_VECTOR_EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "sve2", "bf16")


class CoreTimes(NamedTuple):
    """Seconds since the system started, summed over cores.

    Attributes:
        busy: Time in which a core was not idle, including stolen time.
        stolen: Time in which the hypervisor ran something else, for example another virtual machine.
    """

    busy: float
    stolen: float


class ProcessTimes(NamedTuple):
    """CPU seconds of a process.

    Attributes:
        process: Process ID.
        parent: Process ID of the parent.
        seconds: CPU time of all threads, and of child processes that have exited.
    """

    process: int
    parent: int
    seconds: float


def parse_core_times(text: str, cores: Collection[int], ticks_per_second: int) -> CoreTimes:
    """Parses /proc/stat.

    Args:
        text: Contents of /proc/stat. Its columns are user, nice, system, idle, iowait, irq, softirq and steal, in ticks
            of the clock, followed by guest times, which are part of user and nice.
        cores: Numbers of the cores to sum over.
        ticks_per_second: Ticks of the clock per second.

    Raises:
        ValueError: A core is missing.
    """
    busy = stolen = 0
    missing = set(cores)
    for line in text.splitlines():
        name, *columns = line.split() or [""]
        if not (name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in missing):
            continue
        missing.remove(int(name[3:]))
        user, nice, system, _, _, irq, softirq, steal = map(int, columns[:8])
        busy += user + nice + system + irq + softirq + steal
        stolen += steal
    if missing:
        raise ValueError(f"/proc/stat does not list core {min(missing)}")
    return CoreTimes(busy / ticks_per_second, stolen / ticks_per_second)


def parse_process_times(text: str, ticks_per_second: int) -> ProcessTimes:
    """Parses /proc/PID/stat, in which the name of the program, in parentheses, may contain any character."""
    before, _, after = text.rpartition(")")
    columns = after.split()
    return ProcessTimes(
        process=int(before.split()[0]),
        parent=int(columns[1]),
        seconds=sum(map(int, columns[11:15])) / ticks_per_second,  # utime, stime, cutime, cstime
    )


def sum_descendants(processes: Iterable[ProcessTimes], root: int) -> float:
    """Returns the CPU seconds of a process and of all its descendants, including those that have exited."""
    processes = list(processes)
    tree, children = set(), {root}
    while children:
        tree |= children
        children = {entry.process for entry in processes if entry.parent in children} - tree
    return sum(entry.seconds for entry in processes if entry.process in tree)


class Sample(NamedTuple):
    """State of the clocks at one moment, in seconds.

    Attributes:
        wall: Wall time.
        busy: See `CoreTimes`.
        stolen: See `CoreTimes`.
        own: CPU time of this process and its descendants.
    """

    wall: float
    busy: float
    stolen: float
    own: float


class Load(NamedTuple):
    """What other processes took during the timed rounds, as fractions of the cores' time.

    Attributes:
        other: All that was busy, except for this process and its descendants. Includes `stolen`.
        stolen: Time that the hypervisor spent on something else.
    """

    other: float
    stolen: float


def compute_load(periods: Iterable[tuple[Sample, Sample]], cores: int) -> Load | None:
    """Returns the load over all periods, each from one sample to a later one; None if they have no duration.

    Clocks advance in ticks of 10 ms, so the difference of two of them may be slightly negative; it is then 0.
    """
    wall = other = stolen = 0.0
    for before, after in periods:
        wall += after.wall - before.wall
        other += (after.busy - before.busy) - (after.own - before.own)
        stolen += after.stolen - before.stolen
    return Load(max(other, 0.0) / (wall * cores), stolen / (wall * cores)) if wall else None


def describe_load(load: Load | None, cores: int) -> str:
    """Returns one line that says whether the figures are final."""
    if load is None:
        return (
            "Whether these figures are final is unknown: the load from other processes cannot be read on this system."
        )
    used = (
        f"other processes used {100 * load.other:.1f}% of the {cores} cores during the timed rounds "
        f"({100 * load.stolen:.1f}% stolen by the hypervisor)"
    )
    if is_final(load):
        return f"Final: {used}."
    return f"Not a final figure: {used}; at most {100 * MAX_OTHER_FRACTION:.0f}% is acceptable."


def is_final(load: Load | None) -> bool | None:
    """Returns whether other processes took at most a tenth of the cores' time; None if that is unknown."""
    return None if load is None else load.other <= MAX_OTHER_FRACTION


def list_usable_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def find_vector_extensions(cpu_info: str) -> list[str]:
    """Returns the vector extensions in the contents of /proc/cpuinfo that affect matrix products."""
    for line in cpu_info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return [name for name in _VECTOR_EXTENSIONS if name in value.split()]
    return []


def find_processor_name(cpu_info: str) -> str:
    """Returns the name of the processor in the contents of /proc/cpuinfo, or what the system calls it."""
    for line in cpu_info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


class Conditions:
    """The machine on which a benchmark runs, and the load from other processes while it measures."""

    def __init__(self, cores: int | None = None):
        """Prints the conditions in one line.

        Args:
            cores: Number of cores, and of threads, that each side may use; see `use_cores` in `benchmarks.alternate`.
                All usable cores if None.
        """
        self._cores = list_usable_cores()[:cores]
        cpu_info = _read_text(PROC / "cpuinfo")
        self._processor, self._extensions = find_processor_name(cpu_info), find_vector_extensions(cpu_info)
        self._load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._periods: list[tuple[Sample, Sample]] = []
        print(self.describe(), flush=True)

    def describe(self) -> str:
        """Returns the conditions at the start of the benchmark, in one line."""
        extensions = ", ".join(self._extensions) or "vector extensions unknown"
        load = "unknown" if self._load_average is None else f"{self._load_average:.2f}"
        cores = f"{len(list_usable_cores())} usable cores, at most {len(self._cores)} threads per side"
        return f"{self._processor} ({platform.machine()}; {extensions}), {cores}, load average {load}"

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Records the load from other processes during timed rounds. May be entered several times."""
        before = _take_sample(self._cores)
        yield
        after = _take_sample(self._cores)
        if before is not None and after is not None:
            self._periods.append((before, after))

    @property
    def load(self) -> Load | None:
        """Load from other processes during the timed rounds so far; None if it is unknown."""
        return compute_load(self._periods, len(self._cores))

    def report(self) -> dict[str, Any]:
        """Prints whether the figures are final.

        Returns:
            Values for the JSON line: `device`, `conditions`, and `final`, which is None if the load is unknown.
        """
        load = self.load
        print(describe_load(load, len(self._cores)), flush=True)
        return {
            "device": f"{self._processor} ({platform.machine()}, {len(list_usable_cores())} cores)",
            "conditions": {
                "vector_extensions": self._extensions,
                "threads": len(self._cores),
                "load_average": None if self._load_average is None else round(self._load_average, 2),
                "other_processes": None if load is None else round(load.other, 4),
                "stolen": None if load is None else round(load.stolen, 4),
            },
            "final": is_final(load),
        }


def _take_sample(cores: Collection[int]) -> Sample | None:
    """Reads all clocks. Returns None if the system has no /proc/stat, or if a container hides cores in it."""
    text = _read_text(PROC / "stat")
    if not text:
        return None
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    try:
        times = parse_core_times(text, cores, ticks_per_second)
    except ValueError:
        return None
    texts = (_read_text(folder / "stat") for folder in PROC.iterdir() if folder.name.isdigit())
    processes = [parse_process_times(text, ticks_per_second) for text in texts if text]
    return Sample(time.perf_counter(), times.busy, times.stolen, sum_descendants(processes, os.getpid()))


def _read_text(path: Path) -> str:
    """Returns the contents of a file, or "" if it does not exist, such as that of a process that has exited."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

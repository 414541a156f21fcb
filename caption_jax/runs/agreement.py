"""Agreement of the processes of a run on its workdir, config and data, before any of them uses the devices.

Processes that run different programs wait for each other forever, or fail in a collective with a message about shapes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from etils import epath

from caption_jax.errors import ProcessesError, describe_error, may_be_consequence
from caption_jax.runs.artifact import read_pointer
from caption_jax.runs.description import compute_dtype
from caption_jax.runs.model_source import parse_source
from caption_jax.runs.storage import check_storage
from caption_jax.runs.workdir import versions
from caption_jax.runtime.exchange import TIMEOUT_SECONDS, judge_together, report_failure
from caption_jax.specs import RunSpec, as_mapping
from caption_jax.specs.conversion import flatten
from input_pipeline.files import storage_path, write_atomically
from input_pipeline.image_order import make_train_order
from input_pipeline.records import Split

if TYPE_CHECKING:
    from caption_jax.runs.experiment import Experiment

# Patterns of keys that may have different values in each process.
_LOCAL_KEYS = (
    *("data.root", "data.tfds_dir", "data.feature_cache.folder", "data.pixel_cache.folder"),
    *("data.mixture.*.root", "data.mixture.*.tfds_dir"),
    *("data.workers", "data.worker_type", "data.prefetch"),
)
# Packages that determine the compiled programs and the format of checkpoints.
_COMMON_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint")
_MAX_DIFFERENCES = 3
_READ_ATTEMPTS = 5  # a network file system may show a new file late
_START_SECONDS = 300  # all processes have just joined
_START_FILE = ".start-{token}"


@contextlib.contextmanager
def reported_failures() -> Iterator[None]:
    """Reports an error in the `with` block to the other processes, which would otherwise wait for this process."""
    try:
        yield
    except ProcessesError:  # all processes raise it
        raise
    except BaseException as error:
        report_failure(describe_error(error), may_be_consequence=may_be_consequence(error))
        raise


def prepare_together(prepare: Callable[[], Experiment], *, trains: bool) -> Experiment:
    """Calls `prepare` in each process, and checks that the results agree. A single process only calls it.

    If it raises in one process, all processes raise, so that none waits for it.

    Args:
        prepare: reads the config, the data and the workdir.
        trains: whether the run will be trained, so that `prepare` may find a checkpoint to resume from.

    Raises:
        ProcessesError: the processes disagree, or another process failed. The message is the same in all processes
            without a failure.
    """
    if jax.process_count() == 1:
        return prepare()
    with reported_failures():
        experiment = prepare()
        report = {"host": socket.gethostname(), "facts": collect_facts(experiment, trains=trains)}
    with experiment.display.phase("waiting for the other processes"):
        _raise_verdict(judge_together("that it has read its config and data", json.dumps(report), _judge_facts))
    return experiment


def check_workdir(workdir: epath.Path) -> None:
    """Checks that all processes can use the workdir for training, and that it is the same for all of them.

    With several processes, the workdir is created.

    Raises:
        WorkdirError: see `check_storage`; in a single process only.
        ProcessesError: see `check_shared_folder`.
    """
    if jax.process_count() == 1:
        check_storage(workdir)
    else:
        remedy = "set --workdir to a bucket, or to the path of a folder that all hosts mount"
        check_shared_folder(workdir, "the workdir", remedy, check_storage, _START_SECONDS)


def check_shared_folder(
    folder: epath.Path,
    name: str,
    remedy: str,
    check: Callable[[epath.Path], None] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Checks that a folder is the same for all processes. Does nothing in a single process.

    Process 0 creates the folder and a file in it, which the others read and process 0 then deletes.

    Args:
        folder: the folder.
        name: name of the folder, for the error message.
        remedy: what to do if the folder is not shared.
        check: raises an error if a process cannot use the folder.
        timeout_seconds: how long to wait for each process.

    Raises:
        ProcessesError: a process cannot use the folder, or cannot read the file. The message is the same in all
            processes.
    """
    if jax.process_count() == 1:
        return
    report: dict[str, Any] = {"host": socket.gethostname(), "folder": str(folder)}
    file = None
    try:
        if check is not None:
            check(folder)
        if jax.process_index() == 0:
            report["token"] = secrets.token_hex(8)
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / _START_FILE.format(token=report["token"])
            write_atomically(file, report["token"])
    except Exception as error:  # of the operating system or of a bucket's client
        report["error"] = describe_error(error)
    try:
        judge_start = functools.partial(_judge_start, name)
        start = json.loads(judge_together(f"that {name} is ready", json.dumps(report), judge_start, timeout_seconds))
        _raise_verdict(start["error"])
        report["read"] = _read_token(folder / _START_FILE.format(token=start["token"]))
        judge_tokens = functools.partial(_judge_tokens, name, remedy)
        _raise_verdict(judge_together(f"whether {name} is shared", json.dumps(report), judge_tokens))
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


def check_same_flags(values: Mapping[str, Any]) -> None:
    """Checks that all processes have the same values of flags. Does nothing in a single process.

    Raises:
        ProcessesError: the values differ. The message is the same in all processes.
    """
    if jax.process_count() > 1:
        report = {"host": socket.gethostname(), "facts": {name: str(value) for name, value in values.items()}}
        _raise_verdict(judge_together(f"its {' and '.join(values)}", json.dumps(report), _judge_facts))


def collect_facts(experiment: Experiment, *, trains: bool) -> dict[str, str]:
    """Returns what the processes must agree on, as readable values by name, the causes before their consequences."""
    spec, vocabulary = experiment.spec, experiment.description.vocabulary
    installed = versions()
    facts = {f"the version of {name}": installed[name] for name in _COMMON_PACKAGES}
    facts |= {f"the split {name}": _describe_split(split) for name, split in sorted(experiment.splits.items())}
    facts["the vocabulary"] = f"{vocabulary.size:,} tokens ({vocabulary.fingerprint()[:8]})"
    if trains:
        facts["the workdir"] = "a run to resume" if experiment.resumes else "a new run"
    elif pointer := read_pointer(experiment.workdir):
        facts["the best model"] = f"{pointer.folder} ({pointer.manifest[:8]})"
    for name in spec.decode.ensemble:
        if pointer := read_pointer(storage_path(parse_source(name).folder)):
            facts[f"the best model of {name}"] = f"{pointer.folder} ({pointer.manifest[:8]})"
    facts["the compute dtype"] = str(compute_dtype(spec.dtype))
    facts |= _describe_spec(spec)
    if trains:
        order = make_train_order(experiment.split("train"), spec.data.shuffle_window, spec.seed)
        facts["the order of the training images"] = order.fingerprint or "a shuffle of all"
    return facts


def compare_facts(reports: Sequence[Mapping[str, Any]]) -> str:
    """Compares what the processes report.

    Args:
        reports: the "host" and the "facts" of each process.

    Returns:
        A message that names the processes and what differs; "" if they agree.
    """
    names = list(dict.fromkeys(name for report in reports for name in report["facts"]))
    differences = []
    for name in names:
        processes: dict[str, list[int]] = {}
        for index, report in enumerate(reports):
            processes.setdefault(report["facts"].get(name, "missing"), []).append(index)
        if len(processes) > 1:
            values = [f"{value} in {_name_processes(indices, reports)}" for value, indices in processes.items()]
            differences.append(f"{name} is {' and '.join(values)}")
    if not differences:
        return ""
    more = len(differences) - _MAX_DIFFERENCES
    listed = [*differences[:_MAX_DIFFERENCES], *([f"and {more} more differences"] if more > 0 else [])]
    return (
        f"the processes disagree: {'; '.join(listed)}: start the same command with the same code, config and data on "
        "all hosts"
    )


def _judge_facts(messages: Sequence[str]) -> str:
    return compare_facts([json.loads(message) for message in messages])


def _judge_start(name: str, messages: Sequence[str]) -> str:
    """Returns the token of process 0, or the first error, as JSON."""
    reports = [json.loads(message) for message in messages]
    for index, report in enumerate(reports):
        if "error" in report:
            process = _name_processes([index], reports)
            return json.dumps({"error": f"{process} cannot use {name} {report['folder']}: {report['error']}"})
    return json.dumps({"error": "", "token": reports[0]["token"]})


def _judge_tokens(name: str, remedy: str, messages: Sequence[str]) -> str:
    reports = [json.loads(message) for message in messages]
    blind = [index for index, report in enumerate(reports) if report["read"] != reports[0]["token"]]
    if not blind:
        return ""
    folders = " and ".join(dict.fromkeys(report["folder"] for report in reports))
    return (
        f"{name} {folders} is not shared: {_name_processes(blind, reports)} cannot read a file that "
        f"{_name_processes([0], reports)} wrote there; {remedy}"
    )


def _raise_verdict(verdict: str) -> None:
    if verdict:
        raise ProcessesError(verdict)


def _read_token(file: epath.Path) -> str:
    for attempt in range(_READ_ATTEMPTS):
        try:
            return file.read_text()
        except Exception as error:  # of the operating system or of a bucket's client
            reason = describe_error(error)
        if attempt < _READ_ATTEMPTS - 1:
            time.sleep(1)
    return f"error: {reason}"


def _describe_split(split: Split) -> str:
    digest = hashlib.sha256()
    captions = 0
    for record in split:
        captions += len(record.captions)
        digest.update(json.dumps([record.image_id, *record.captions]).encode())
    return f"{len(split):,} images with {captions:,} captions ({digest.hexdigest()[:8]})"


def _describe_spec(spec: RunSpec) -> dict[str, str]:
    values = flatten(as_mapping(spec))
    common = [key for key in sorted(values) if not any(fnmatch.fnmatchcase(key, pattern) for pattern in _LOCAL_KEYS)]
    return {f"config.{key}": repr(values[key]) for key in common}


def _name_processes(indices: Sequence[int], reports: Sequence[Mapping[str, Any]]) -> str:
    """Names processes, with the host of the first: "process 1 (host-b)" or "processes 1-3, 5 (host-b, ...)"."""
    hosts = list(dict.fromkeys(reports[index]["host"] for index in indices))
    suffix = f" ({hosts[0]}{', ...' if len(hosts) > 1 else ''})"
    if len(indices) == 1:
        return f"process {indices[0]}{suffix}"
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][-1] + 1:
            ranges[-1].append(index)
        else:
            ranges.append([index])
    names = [str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in ranges]
    return f"processes {', '.join(names)}{suffix}"

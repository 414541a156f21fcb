"""A pool of Ray actors, each with one model, that captions units of work with Ray Data."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import queue
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from caption_jax.bulk.bulk_job import Job
from caption_jax.bulk.machines import LostMachineError, Machines, WorkerError
from caption_jax.bulk.work_units import Unit
from caption_jax.errors import ConfigError, UserError, describe_error
from caption_jax.runtime.libraries import without_messages
from caption_jax.runtime.process import set_up_process
from caption_jax.runtime.signals import handled_signals
from input_pipeline.extras import optional_packages

_OBJECT_STORE_BYTES = 2**27  # units and counts are small; images do not pass through Ray
_TASK_RETRIES = 3  # of a unit whose worker died; more deaths than that are not an accident
_LISTED_ERRORS = 3  # per unit
_CHECK_SECONDS = 5.0  # without a result, after which the machines are checked
_NOTICE_SECONDS = 60.0  # in which Ray notices that a machine is lost
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it, Ray warns
    "RAY_ENABLE_AUTO_CONNECT": "0",  # so that threads that still call Ray after its end do not start it again
}
_LOG_ENVIRONMENT = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
_LOG_LEVEL_MESSAGE = re.compile(rb"\[[^\n]*Set ray log level from environment variable[^\n]*\n")


@dataclasses.dataclass(frozen=True)
class UnitResult:
    """What the driver learns of a captioned unit.

    Attributes:
        number: number of the unit.
        images: number of its images.
        errors: number of images with an error.
        listed: the first errors.
    """

    number: int
    images: int
    errors: int
    listed: tuple[str, ...]


class UnitWorker:
    """An actor: captions units and writes their Parquet files. JAX is first imported when it is created.

    Args:
        job: what to compute.
        cpus: number of threads of XLA's CPU backend; 0 for its default.
    """

    def __init__(self, job: Job, cpus: int):
        if cpus:
            os.environ["NPROC"] = str(cpus)  # read by XLA
        set_up_process()
        self._job = job
        self._model: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Captions a unit. Errors that the user can fix are returned, because Ray would wrap them."""
        number = int(row["number"])
        try:
            images, errors, listed = self._caption(number, pickle.loads(row["unit"]))
        except (UserError, OSError, ValueError) as error:
            return {"number": number, "images": 0, "errors": 0, "listed": "", "failure": describe_error(error)}
        return {"number": number, "images": images, "errors": errors, "listed": "\n".join(listed), "failure": ""}

    def _caption(self, number: int, unit: Unit) -> tuple[int, int, list[str]]:
        from caption_jax.bulk.bulk_model import BulkModel  # imports JAX
        from caption_jax.bulk.parts import count_part, has_part, write_part

        if has_part(self._job.folder, number):  # its worker died before it could say so
            counts = count_part(self._job.folder, number)
            return counts.images, counts.errors, []
        if self._model is None:
            self._model = BulkModel(self._job)
        rows = self._model.caption(unit)
        write_part(self._job.folder, number, rows, self._model.schema)
        errors = [row for row in rows if row.error]
        listed = [f"{row.source}{row.key and '/'}{row.key}: {row.error}" for row in errors[:_LISTED_ERRORS]]
        return len(rows), len(errors), [" ".join(text.split()) for text in listed]


@contextlib.contextmanager
def running_ray(workers: int, *, verbose: bool = False) -> Iterator[None]:
    """Connects to the cluster in RAY_ADDRESS, or starts Ray on this machine until the end of the block.

    Args:
        workers: number of workers for which this machine must have room; 0 for any.
        verbose: whether to show the messages of Ray and of the workers.

    Raises:
        ConfigError: there is no cluster at RAY_ADDRESS.
        MissingPackageError: the `ray` extra is not installed.
    """
    os.environ.update(_ENVIRONMENT)
    if not verbose:
        os.environ.update({name: os.environ.get(name, value) for name, value in _LOG_ENVIRONMENT.items()})
    with optional_packages("bulk captioning"):
        import ray

    options: dict[str, Any] = {"log_to_driver": verbose}
    options["logging_level"] = logging.INFO if verbose else logging.ERROR
    address = os.environ.get("RAY_ADDRESS", "")
    folder = "" if address else tempfile.mkdtemp(prefix="ray-")
    if not address:
        options |= {"num_cpus": max(workers, _count_cpus()), "include_dashboard": False, "_temp_dir": folder}
        options |= {"object_store_memory": _OBJECT_STORE_BYTES}
    with contextlib.nullcontext() if verbose else _without_output():
        try:
            try:
                with without_messages(_LOG_LEVEL_MESSAGE):
                    ray.init(address=address or "local", **options)
            except (ConnectionError, TimeoutError, ValueError) as error:
                if not address:
                    raise
                raise ConfigError(f"no Ray cluster at RAY_ADDRESS={address}: {describe_error(error)}") from error
            with handled_signals() as signals:
                signals.reinstall()  # Ray has replaced the handler of SIGTERM
            yield
        finally:
            ray.shutdown()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Discards standard output, on which Ray prints many lines about lost machines whatever its log level is."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def is_cluster() -> bool:
    """Returns whether RAY_ADDRESS names a cluster."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _count_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def caption_units(units: Mapping[int, Unit], job: Job, workers: int, *, verbose: bool = False) -> Iterator[UnitResult]:
    """Captions units in a pool of actors; yields the result of each unit when its file has been written.

    Ray replaces actors that die, and gives their units to others. Must be called within `running_ray`.

    Args:
        units: the units by their number.
        job: what to compute.
        workers: see `choose_resources`.
        verbose: whether Ray Data shows its messages.

    Raises:
        WorkerError: a worker has failed, or died several times with the same unit.
        LostMachineError: Ray on a machine has ended, and its workers with it.
        ConfigError: see `choose_resources`.
    """
    import ray
    import ray.data

    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised here
        ray.data.DataContext.get_current().enable_progress_bars = False
    machines = Machines(ray.nodes(), workers)
    resources = machines.resources
    rows = [{"number": number, "unit": pickle.dumps(unit)} for number, unit in units.items()]
    with warnings.catch_warnings():
        # Ray will remove options of actors such as the number of retries; pyproject.toml excludes those releases.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            UnitWorker,
            fn_constructor_args=(job, 0 if resources.accelerators else resources.cpus),
            compute=ray.data.ActorPoolStrategy(size=resources.workers, max_tasks_in_flight_per_actor=2),
            num_cpus=resources.cpus,
            max_task_retries=_TASK_RETRIES,
            **resources.accelerators,
        )
    try:
        for row in _watch(dataset.iter_rows(), machines):
            if row["failure"]:
                raise WorkerError(row["failure"])
            listed = tuple(filter(None, row["listed"].split("\n")))
            yield UnitResult(int(row["number"]), int(row["images"]), int(row["errors"]), listed)
    except ray.exceptions.RayError as error:
        _check_failed(machines, error)
        raise WorkerError(f"the workers have failed: {describe_error(error)}") from error


def _check_failed(machines: Machines, error: Exception) -> None:
    """Raises LostMachineError if workers have failed because a machine is lost, which Ray may not know yet."""
    import ray

    is_unreachable = isinstance(error, ray.exceptions.ActorUnavailableError)
    if is_unreachable and not is_cluster():  # Ray would end this process as soon as it knows
        raise LostMachineError("Ray on this machine has ended")
    end = time.monotonic() + (_NOTICE_SECONDS if is_unreachable else 0)
    while True:
        machines.check(ray.nodes(), is_failed=True)
        if time.monotonic() >= end:
            return
        time.sleep(1)


def _watch(rows: Iterator[dict[str, Any]], machines: Machines) -> Iterator[dict[str, Any]]:
    """Yields rows, which a thread waits for, and checks the machines meanwhile. Raises what the thread raises.

    Ray waits for the workers of a lost machine until another one has room for them. The thread ends with the block of
    `running_ray`.
    """
    import ray

    results: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for row in rows:
                results.put(row)
            results.put(None)
        except BaseException as error:
            results.put(error)

    threading.Thread(target=read, name="rows", daemon=True).start()
    while True:
        try:
            row = results.get(timeout=_CHECK_SECONDS)
        except queue.Empty:
            machines.check(ray.nodes())
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row

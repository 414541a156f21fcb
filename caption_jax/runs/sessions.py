"""The training sessions of a run: the command, the data and the time of each one, and why it ended.

`sessions.json` in the workdir has one entry per process that trained the run; a run that was resumed has several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping

import jax
from absl import logging
from etils import epath

from caption_jax.runtime.process import current_command
from caption_jax.runtime.signals import SignalReceived
from input_pipeline.files import write_atomically
from input_pipeline.records import Split

FILE_NAME = "sessions.json"

# Reasons why a session ended.
LAST_STEP = "last_step"
EARLY_STOPPING = "early_stopping"
STOP_REQUESTED = "stop_requested"
ERROR = "error"

_MAX_DETAIL = 300  # characters


@dataclasses.dataclass(frozen=True)
class Session:
    """One process that trained a run.

    Attributes:
        command: the command line; "" if the run was started from a notebook.
        started: ISO 8601 time with the offset from UTC.
        splits: split -> number of "images" and "captions".
        first_step: number of steps that earlier sessions had completed.
        planned_steps: the step at which the run was to end.
        last_step: number of steps completed at the end of the session; None if unknown.
        ended: ISO 8601 time; "" if the process was killed or is still running.
        reason: "last_step", "early_stopping", "stop_requested" or "error"; "" if `ended` is "".
        detail: an explanation of the reason, such as the error message.
    """

    command: str = ""
    started: str = ""
    splits: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    first_step: int = 0
    planned_steps: int = 0
    last_step: int | None = None
    ended: str = ""
    reason: str = ""
    detail: str = ""


class SessionRecord:
    """The entry of the current process in `sessions.json`, written at its start and at its end."""

    def __init__(self, workdir: epath.Path, session: Session, *, is_main_process: bool = True):
        self._path = workdir / FILE_NAME
        self._earlier = _read(self._path) if is_main_process else []
        self._is_main_process = is_main_process
        self._session = session
        self._write()

    def end(self, step: int | None, reason: str, detail: str = "") -> None:
        """Records the end of the session. Only the first call has an effect."""
        if self._session.ended:
            return
        self._session = dataclasses.replace(
            self._session, last_step=step, ended=_now(), reason=reason, detail=detail[:_MAX_DETAIL]
        )
        self._write()

    def _write(self) -> None:
        if self._is_main_process:
            sessions = [dataclasses.asdict(session) for session in (*self._earlier, self._session)]
            write_atomically(self._path, json.dumps(sessions, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def record_session(
    workdir: epath.Path, splits: Mapping[str, Split], first_step: int, planned_steps: int
) -> Iterator[SessionRecord]:
    """Records a training session. If the body raises, the error is the reason for the end of the session.

    Args:
        workdir: workdir of the run.
        splits: the data of the run.
        first_step: see `Session`.
        planned_steps: see `Session`.

    Yields:
        The record, whose `end` the caller calls with the last step.
    """
    counts = {name: {"images": len(split), "captions": len(split.captions)} for name, split in splits.items()}
    session = Session(current_command(), _now(), counts, first_step, planned_steps)
    record = SessionRecord(workdir, session, is_main_process=jax.process_index() == 0)
    try:
        yield record
    except SignalReceived:  # before the first step
        with contextlib.suppress(OSError):
            record.end(first_step, STOP_REQUESTED)
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # which must not hide the error
            record.end(None, ERROR, f"{type(error).__name__}: {error}".removesuffix(": "))
        raise


def read_sessions(workdir: epath.Path) -> list[Session]:
    """Returns the sessions of a run, oldest first; [] if an older release trained it.

    A file that is not valid is ignored with a warning, because nothing but the report depends on it.
    """
    return _read(workdir / FILE_NAME)


def _read(path: epath.Path) -> list[Session]:
    if not path.exists():
        return []
    names = {field.name for field in dataclasses.fields(Session)}
    try:
        return [
            Session(**{name: value for name, value in entry.items() if name in names})
            for entry in json.loads(path.read_text())
        ]
    except (ValueError, TypeError, AttributeError) as error:
        logging.warning("%s is not valid and is ignored (%s)", path, error)
        return []


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")

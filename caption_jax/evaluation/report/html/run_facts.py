"""What the report states about the run: when, on which data and with which command it was trained, and why it ended."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from caption_jax.runs.sessions import EARLY_STOPPING, ERROR, LAST_STEP, STOP_REQUESTED, Session
from caption_jax.specs import DataSpec
from caption_jax.telemetry.metrics_file import Row
from input_pipeline.data_spec import MIXTURE, SHARD_SOURCES


@dataclass(frozen=True)
class RunFacts:
    """Statements about a run. An older release may not have recorded all of them.

    Attributes:
        name: name of the run, the heading of the page.
        date: date and time of the report.
        data: source and location of the training data.
        training_images: number of training images and captions.
        trained: when the run was trained, and in how many sessions.
        end: why the run ended, as a sentence.
        command: command line of the last training session; "" if it was not recorded.
        report_command: command line that wrote the report, if it was not the training command; otherwise "".
    """

    name: str
    date: str
    data: str
    training_images: str
    trained: str
    end: str
    command: str
    report_command: str = ""


def make_run_facts(
    name: str,
    data: DataSpec,
    sessions: Sequence[Session],
    *,
    train_counts: tuple[int, int] | None,
    planned_steps: int | None,
    rows: Sequence[Row],
    report_command: str,
    now: datetime.datetime,
) -> RunFacts:
    """Collects the facts.

    Args:
        name: name of the run.
        data: the data section of the run's spec.
        sessions: training sessions, oldest first; empty if an older release trained the run.
        train_counts: number of training images and captions, if the training split is open.
        planned_steps: the step at which the run was to end, if known.
        rows: logged metrics of the run.
        report_command: command line of the current process.
        now: the current time, with a time zone.
    """
    # A finished run that is started again only repeats the evaluation.
    trained = [item for item in sessions if item.last_step != item.first_step] or list(sessions)
    session = trained[-1] if trained else None
    command = session.command if session else ""
    return RunFacts(
        name=name,
        date=_format_time(now),
        data=describe_data(data),
        training_images=_describe_training_images(session, train_counts),
        trained=_describe_times(session, sessions),
        end=describe_end(session, planned_steps, rows),
        command=command,
        report_command="" if report_command in ("", command) else report_command,
    )


def describe_data(data: DataSpec) -> str:
    """Describes the source and location of a dataset."""
    if data.source == "folder":
        captions = f" (captions: {', '.join(data.captions)})" if data.captions else ""  # empty if found by name
        return f"folder {data.root or '.'}{captions}"
    if data.source == "tfds":
        return f"TensorFlow dataset {data.tfds_name}"
    if data.source == MIXTURE:
        return "; ".join(f"{part.part} (weight {part.weight:g}): {describe_data(part)}" for part in data.list_parts())
    if data.source in SHARD_SOURCES:
        return f"{data.source} shards in {data.root or '.'}"
    return f"rendered scenes of shapes ({data.shapes})"


def describe_end(session: Session | None, planned_steps: int | None, rows: Sequence[Row]) -> str:
    """Describes why a run ended, from its last session, or from the logged metrics if it has none.

    Args:
        session: the last session that trained.
        planned_steps: the step at which the run was to end, if known.
        rows: logged metrics of the run.
    """
    logged_step = max((row.step for row in rows if row.split == "train"), default=None)
    planned_steps = session.planned_steps if session else planned_steps
    of_planned = f" of {planned_steps:,}" if planned_steps else ""
    if session is None or not session.reason:
        if session is None and logged_step is not None and logged_step == planned_steps:
            return f"It reached its last step, {planned_steps:,}."
        last = f" The last logged step is {logged_step:,}{of_planned}." if logged_step is not None else ""
        state = "Not recorded." if session is None else "It was killed, or is still running."
        return state + last
    at_step = "" if session.last_step is None else f" at step {session.last_step:,}{of_planned}"
    detail = f": {session.detail}" if session.detail else ""
    return {
        LAST_STEP: f"It reached its last step, {planned_steps or 0:,}.",
        EARLY_STOPPING: f"Early stopping{at_step}{detail}.",
        STOP_REQUESTED: f"Stopped{at_step} by {session.detail or 'a signal or Ctrl-C'}; the same command resumes it.",
        ERROR: f"An error ended it{at_step}{detail}",
    }.get(session.reason, f"{session.reason}{at_step}{detail}")


def _describe_training_images(session: Session | None, train_counts: tuple[int, int] | None) -> str:
    if session is not None and "train" in session.splits:
        counts = session.splits["train"]
        train_counts = counts.get("images", 0), counts.get("captions", 0)
    if train_counts is None:
        return "an unknown number of images"
    images, captions = train_counts
    return f"{images:,} images with {captions:,} captions"


def _describe_times(session: Session | None, sessions: Sequence[Session]) -> str:
    if session is None:
        return "not recorded"
    times = [time for time in (session.started, session.ended) if time]
    text = " to ".join(_format_time(datetime.datetime.fromisoformat(time)) for time in times)
    return text + (f" (session {sessions.index(session) + 1} of {len(sessions)})" if len(sessions) > 1 else "")


def _format_time(time: datetime.datetime) -> str:
    """Formats a time with a time zone as "27 November 2026, 21:47 UTC+01:00"."""
    return f"{time.day} {time:%B %Y, %H:%M} {datetime.timezone(time.utcoffset())}"

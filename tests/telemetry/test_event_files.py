"""A thread writes event files in order. Closing them waits for all writes, and errors are raised later."""

from __future__ import annotations

import threading

import pytest

from caption_jax.telemetry.event_files import EventFiles


class RecordingWriter:
    """A metric writer that records its calls, and raises an error at one step."""

    def __init__(self, failing_step: int = -1):
        self.calls: list[tuple[str, int]] = []
        self.threads: set[str] = set()
        self._failing_step = failing_step

    def _write(self, kind: str, step: int) -> None:
        self.threads.add(threading.current_thread().name)
        if step == self._failing_step:
            raise OSError("no space left on device")
        self.calls.append((kind, step))

    def write_scalars(self, step, values):
        self._write("scalars", step)

    def write_images(self, step, images):
        self._write("images", step)

    def write_texts(self, step, texts):
        self._write("texts", step)

    def close(self):
        self.calls.append(("close", -1))


def test_writes_do_not_block_and_are_not_lost():
    may_open, writer = threading.Event(), RecordingWriter()

    def open_writer(folder):
        assert folder == "folder" and may_open.wait(60)
        return writer

    events = EventFiles("folder", open_writer)
    events.texts(0, {"config": "text"})
    for step in range(1, 4):
        events.scalars(step, {"loss": 1.0})
    events.images(3, {})
    assert writer.calls == []  # all writes are pending, and this thread was not blocked
    may_open.set()
    events.close()
    writes = [("texts", 0), ("scalars", 1), ("scalars", 2), ("scalars", 3), ("images", 3)]
    assert writer.calls == [*writes, ("close", -1)]
    assert writer.threads.isdisjoint({threading.current_thread().name})
    events.close()
    assert writer.calls[-2:] == [writes[-1], ("close", -1)]


def test_no_writer_is_opened_without_a_write():
    events = EventFiles("folder", lambda folder: pytest.fail("opened"))
    events.close()


def test_errors_are_raised_by_a_later_write_or_by_close():
    events = EventFiles("folder", lambda folder: RecordingWriter(failing_step=1))
    events.scalars(1, {})
    with pytest.raises(OSError, match="no space left"):
        events.close()

    events = EventFiles("folder", lambda folder: RecordingWriter(failing_step=1))
    events.scalars(1, {})
    events._queue._pending[0].exception(timeout=60)  # the write has finished
    with pytest.raises(OSError, match="no space left"):
        events.scalars(2, {})
    events.close()


def test_errors_when_opening_the_writer_are_raised_by_close():
    def open_writer(folder):
        raise ValueError(folder)

    events = EventFiles("folder", open_writer)
    events.scalars(1, {})
    with pytest.raises(ValueError):
        events.close()


def test_a_full_disk_is_reported_once_and_ends_the_events_but_not_the_run(caplog):
    class FullDisk(RecordingWriter):
        def _write(self, kind, step):
            super()._write(kind, step)
            if step > 1:
                raise RuntimeError("/runs/a/events.out.tfevents.1; No space left on device")

    writer = FullDisk()
    events = EventFiles("folder", lambda folder: writer)
    for step in range(1, 5):
        events.scalars(step, {})
    events.close()
    assert writer.calls == [("scalars", 1), ("scalars", 2)]
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "no more events are written for TensorBoard (/runs/a/events.out.tfevents.1: No space left on device"
    )


def test_writes_block_while_too_many_are_pending(monkeypatch):
    monkeypatch.setattr("caption_jax.telemetry.write_queue._MAX_PENDING", 2)
    may_open, writer = threading.Event(), RecordingWriter()
    events = EventFiles("folder", lambda folder: may_open.wait(60) and writer)
    threading.Timer(0.2, may_open.set).start()
    for step in range(5):
        events.scalars(step, {})
    assert len(writer.calls) >= 2
    events.close()
    assert [step for _, step in writer.calls] == [0, 1, 2, 3, 4, -1]

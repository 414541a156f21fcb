"""Event files are written in order by a thread, are complete when closed, and report their errors."""

from __future__ import annotations

import threading

import pytest

from caption_jax.telemetry.event_files import EventFiles


class Recorder:
    """A metric writer that records its calls."""

    def __init__(self, failing: int = -1):
        self.calls: list[tuple[str, int]] = []
        self.threads: set[str] = set()
        self._failing = failing

    def _write(self, kind: str, step: int) -> None:
        self.threads.add(threading.current_thread().name)
        if step == self._failing:
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
    opening, recorder = threading.Event(), Recorder()

    def open_writer(folder):
        assert folder == "folder" and opening.wait(60)
        return recorder

    events = EventFiles("folder", open_writer)
    events.texts(0, {"config": "text"})
    for step in range(1, 4):
        events.scalars(step, {"loss": 1.0})
    events.images(3, {})
    assert recorder.calls == []  # all writes are pending, and this thread was not blocked
    opening.set()
    events.close()
    written = [("texts", 0), ("scalars", 1), ("scalars", 2), ("scalars", 3), ("images", 3)]
    assert recorder.calls == [*written, ("close", -1)]
    assert recorder.threads.isdisjoint({threading.current_thread().name})
    events.close()
    assert recorder.calls[-2:] == [written[-1], ("close", -1)]


def test_the_writer_is_opened_by_the_first_write():
    events = EventFiles("folder", lambda folder: pytest.fail("opened"))
    events.close()


def test_errors_are_raised_by_a_later_write_or_by_close():
    events = EventFiles("folder", lambda folder: Recorder(failing=1))
    events.scalars(1, {})
    with pytest.raises(OSError, match="no space left"):
        events.close()

    events = EventFiles("folder", lambda folder: Recorder(failing=1))
    events.scalars(1, {})
    events._pending[0].exception(timeout=60)  # the write has finished
    with pytest.raises(OSError, match="no space left"):
        events.scalars(2, {})
    events.close()


def test_an_error_of_opening_is_raised_like_one_of_writing():
    def open_writer(folder):
        raise PermissionError(folder)

    events = EventFiles("folder", open_writer)
    events.scalars(1, {})
    with pytest.raises(PermissionError):
        events.close()


def test_a_slow_writer_blocks_when_too_many_writes_are_pending(monkeypatch):
    monkeypatch.setattr("caption_jax.telemetry.event_files._MAX_PENDING", 2)
    opening, recorder = threading.Event(), Recorder()
    events = EventFiles("folder", lambda folder: opening.wait(60) and recorder)
    threading.Timer(0.2, opening.set).start()
    for step in range(5):
        events.scalars(step, {})
    assert len(recorder.calls) >= 2
    events.close()
    assert [step for _, step in recorder.calls] == [0, 1, 2, 3, 4, -1]

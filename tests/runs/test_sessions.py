"""`sessions.json` records when and with which command a run was trained, and why each session ended."""

from __future__ import annotations

import datetime
import json

import pytest
from etils import epath

from caption_jax.runs.sessions import EARLY_STOPPING, Session, SessionRecord, read_sessions, record_session
from input_pipeline.records import Record, Split

SPLITS = {"train": Split("train", [Record(lambda: b"", ("a dog", "a cat"), i) for i in range(3)])}


def test_each_session_has_an_entry_with_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("caption_jax.runs.sessions.current_command", lambda: "python main.py")
    workdir = epath.Path(tmp_path)
    with record_session(workdir, SPLITS, 0, 100):
        (running,) = read_sessions(workdir)
    assert (running.first_step, running.planned_steps, running.ended, running.reason) == (0, 100, "", "")
    assert running.splits == {"train": {"images": 3, "captions": 6}} and running.command == "python main.py"
    with record_session(workdir, SPLITS, 40, 100) as record:
        record.end(60, EARLY_STOPPING, "CIDEr-D had not improved")
        record.end(60, "error")  # no effect
    killed, last = read_sessions(workdir)
    assert killed == running
    assert (last.first_step, last.last_step, last.reason) == (40, 60, EARLY_STOPPING)
    start, end = (datetime.datetime.fromisoformat(time) for time in (last.started, last.ended))
    assert start <= end and start.utcoffset() is not None


@pytest.mark.parametrize("error", [ValueError("the loss is nan"), KeyboardInterrupt()])
def test_an_error_is_recorded_and_raised(tmp_path, error):
    with pytest.raises(type(error)), record_session(epath.Path(tmp_path), SPLITS, 0, 100):
        raise error
    (session,) = read_sessions(epath.Path(tmp_path))
    assert (session.reason, session.last_step) == ("error", None)
    assert session.detail == ("ValueError: the loss is nan" if str(error) else "KeyboardInterrupt")


def test_the_sessions_of_an_older_release_are_empty_and_a_damaged_file_is_ignored(tmp_path, caplog):
    workdir = epath.Path(tmp_path)
    assert read_sessions(workdir) == []
    for text in ("[{", '["a"]', '{"a": 1}', "3"):
        (tmp_path / "sessions.json").write_text(text)
        assert read_sessions(workdir) == []
        assert "sessions.json is not valid" in caplog.messages[-1]
    with record_session(workdir, SPLITS, 0, 10):
        assert len(read_sessions(workdir)) == 1


def test_keys_of_a_newer_release_are_ignored(tmp_path):
    (tmp_path / "sessions.json").write_text(json.dumps([{"command": "python main.py", "host": "tpu-1"}]))
    assert read_sessions(epath.Path(tmp_path)) == [Session(command="python main.py")]


def test_only_the_main_process_writes(tmp_path):
    SessionRecord(epath.Path(tmp_path), Session(), is_main_process=False).end(3, EARLY_STOPPING)
    assert list(tmp_path.iterdir()) == []

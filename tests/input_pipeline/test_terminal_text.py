r"""Names and captions on a terminal: what could do harm is shown as an escape, and everything else as it is."""

from __future__ import annotations

import ast
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_jax.cli.exit_status import print_error
from caption_jax.errors import DataError
from caption_jax.runtime.libraries import LogFormatter
from caption_jax.runtime.process import make_command
from input_pipeline.terminal_text import escape, escape_message

UNCHANGED = [
    "a red kite",
    "café, größer, naïve",
    "\u0639\u0645\u0644 \u0639\u0631\u0628\u064a",  # Arabic
    "\u05e9\u05dc\u05d5\u05dd",  # Hebrew
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian with a zero-width non-joiner
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # emoji joined to a family
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",  # the flag of a region
    r"C:\photos\dog.jpg",
    "風筝 100\u00a0%",
]
ESCAPED = {
    "\x1b[31mred.jpg": r"\x1b[31mred.jpg",
    "a\nerror: b": r"a\nerror: b",
    "a\r\tb\x00\x7f": r"a\r\tb\x00\x7f",
    "\u202egpj.exe": r"\u202egpj.exe",
    "\u2066a\u2069\u200e\u200f\u061c": r"\u2066a\u2069\u200e\u200f\u061c",
    "a\u2028b\x85c\x9b1m": r"a\u2028b\u0085c\u009b1m",
    "caf\udce9.jpg": r"caf\udce9.jpg",
    "literal \\x1b": r"literal \\x1b",
    "C:\\a\x1b": r"C:\\a\x1b",
}


@pytest.mark.parametrize("text", UNCHANGED)
def test_legitimate_text_is_not_changed(text):
    assert escape(text) == text and escape_message(text) == text


@pytest.mark.parametrize("text", ESCAPED)
def test_characters_that_affect_a_terminal_are_escaped(text):
    assert escape(text) == ESCAPED[text]


@given(st.text() | st.text(st.sampled_from("\\nxu1b\x1b\n\u202e\udce9")))
def test_escaped_text_is_unambiguous_and_on_one_line(text):
    escaped = escape(text)
    assert "\n" not in escaped and "\x1b" not in escaped and "\u202e" not in escaped
    quoted = escaped.replace('"', r"\x22")
    has_escapes = escaped != text
    assert (ast.literal_eval(f'"{quoted}"') if has_escapes else escaped) == text


def test_names_cannot_forge_an_error_message(capsys):
    assert print_error(DataError("no such file: a\nerror: everything is deleted\x1b[2J"), "caption-jax") == 1
    assert capsys.readouterr().err == "error: no such file: a\n  error: everything is deleted\\x1b[2J\n"


def test_names_cannot_forge_a_message_of_the_log():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "cannot read %s (%d)", ("a\n12:00:00 done\x1b", 3), None)
    (line,) = LogFormatter().format(record).splitlines()
    assert line.endswith(r"warning: cannot read a\n12:00:00 done\x1b (3)")
    assert record.args == ("a\n12:00:00 done\x1b", 3)  # other handlers see the arguments


@pytest.mark.parametrize("name", ["a\x1b[2J", "it's\n", "plain name"])
def test_commands_with_such_names_can_be_pasted(name, monkeypatch):
    import subprocess

    monkeypatch.setattr(sys, "argv", ["caption-jax"])
    command = make_command("caption", name)
    assert "\x1b" not in command and "\n" not in command
    argument = command.split(" caption ", 1)[1]
    shown = subprocess.run(["bash", "-c", f"printf %s {argument}"], capture_output=True, check=True).stdout
    assert shown.decode() == name

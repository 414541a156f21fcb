"""Help pages fit a screen, end in examples and are printed without importing libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest
from small_run import ROOT, run_main

from caption_jax.cli.command import get_program
from caption_jax.cli.help_pages import format_overview, format_subcommand
from caption_jax.cli.subcommands import MODES, SUBCOMMANDS

LONGEST_PROGRAM = "python -m caption_jax"


def check_page(text: str, program: str, max_lines: int) -> None:
    """Asserts that a page fits a screen of 100 columns and ends in examples."""
    lines = text.splitlines()
    assert len(lines) <= max_lines and max(map(len, lines)) <= 100
    examples = lines[lines.index("examples:") + 1 :]
    assert examples and all(line.startswith(f"  {program} ") for line in examples)


@pytest.mark.parametrize("program", ["caption-jax", LONGEST_PROGRAM])
def test_the_overview_lists_all_subcommands_on_26_lines(program):
    page = format_overview(program)
    check_page(page, program, 26)
    assert all(f"\n  {name} " in page for name in SUBCOMMANDS)


@pytest.mark.parametrize("name", MODES)
def test_the_page_of_a_subcommand_describes_its_flags(name):
    page = format_subcommand(SUBCOMMANDS[name], LONGEST_PROGRAM)
    check_page(page, f"{LONGEST_PROGRAM} {name}", 40)
    assert page.startswith(f"usage: {LONGEST_PROGRAM} {name}")
    for flag in (*SUBCOMMANDS[name].flags, "quiet", "verbose", "config.KEY"):
        assert f"\n  --{flag}" in page
    assert "--mode" not in page and "repeat this option" not in page


def test_the_page_of_configs():
    assert "\nexamples:\n  caption-jax configs\n" in format_subcommand(SUBCOMMANDS["configs"], "caption-jax")


def test_score_has_a_page_with_the_references_first(capsys):
    assert run_main("score", "--help") == 0
    page = capsys.readouterr().out
    check_page(page, "python main.py score", 40)
    assert "usage: python main.py score annotations results [other_results]" in page


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        (["--help"], "Train, evaluate and use image captioners."),
        (["-h"], "Train, evaluate and use image captioners."),
        (["help"], "Train, evaluate and use image captioners."),
        (["caption", "--help"], "usage: python main.py caption "),
        (["help", "caption"], "usage: python main.py caption "),
        (["caption", "--workdir=missing", "-h"], "usage: python main.py caption "),
        (["--mode=caption", "--help"], "usage: python main.py caption "),
        (["--mode", "search", "--help"], "usage: python main.py search "),
    ],
)
def test_requests_for_help(arguments, title, capsys):
    assert run_main(*arguments) == 0
    output = capsys.readouterr()
    assert output.out.startswith(title) and output.err == ""


def test_messages_name_the_command_that_was_started():
    assert get_program("/usr/bin/caption-jax") == "caption-jax"
    assert get_program("/src/main.py") == "python main.py"
    assert get_program("/src/caption_jax/__main__.py") == "python -m caption_jax"


def test_help_imports_neither_jax_nor_other_large_libraries():
    command = [sys.executable, "-X", "importtime", "-m", "caption_jax", "train", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.startswith("usage: python -m caption_jax train ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in process.stderr.splitlines()}
    assert "absl" in imported
    assert not imported & {"jax", "numpy", "flax", "tensorflow", "ml_collections", "yaml", "etils", "PIL"}

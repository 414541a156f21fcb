"""Damage to the files that describe a run, and a check that they are read or rejected in one line."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from damaged_files import apply_edits, dump_json, edits, replace_value, time_limit
from hypothesis import strategies as st

from caption_jax.errors import UserError

DESCRIPTION_FILES = (
    *("config.json", "model.json", "preprocessing.json"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_settings.json", "tokenizer/vocabulary.json"),
)


@st.composite
def damaged_descriptions(draw) -> tuple[str, bytes]:
    """Name and contents of a file of a workdir, with edited bytes or replaced values."""
    name = draw(st.sampled_from(DESCRIPTION_FILES))
    content = make_description()[name]
    if name.endswith(".json") and draw(st.booleans()):
        value = json.loads(content)
        for _ in range(draw(st.integers(1, 3))):
            value = replace_value(draw, value)
        return name, dump_json(value).encode("utf-8", "surrogatepass")
    return name, apply_edits(content, draw(edits))


def check_description(data: tuple[str, bytes]) -> bool:
    """Reads the description of a run of which one file is damaged, and its config as a config file.

    Returns whether both are valid. Errors other than `UserError`, and messages without the file, propagate.
    """
    from caption_jax.cli.stored_config import get_config
    from caption_jax.runs.workdir import read_description

    name, content = data
    workdir = Path(_make_workdir().name)
    (workdir / name).write_bytes(content)
    try:
        with time_limit():
            read_description(workdir)
            get_config(str(workdir))
    except UserError as error:
        message = str(error)
        assert name.rpartition("/")[2] in message or "tokenizer" in message, message
        assert "\n" not in message and len(message) < 1000, message
        return False
    finally:
        (workdir / name).write_bytes(make_description()[name])
    return True


@functools.cache
def make_description() -> dict[str, bytes]:
    """Returns the files of an intact description by path."""
    from etils import epath
    from small_models import small_description

    from caption_jax.runs.workdir import write_description

    with tempfile.TemporaryDirectory() as folder:
        write_description(epath.Path(folder), small_description())
        return {name: (Path(folder) / name).read_bytes() for name in DESCRIPTION_FILES}


@functools.cache
def _make_workdir() -> tempfile.TemporaryDirectory:
    """Makes a workdir with an intact description that is deleted when the process exits."""
    folder = tempfile.TemporaryDirectory()
    for name, content in make_description().items():
        (Path(folder.name) / name).parent.mkdir(exist_ok=True)
        (Path(folder.name) / name).write_bytes(content)
    return folder

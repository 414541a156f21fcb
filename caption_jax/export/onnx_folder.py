"""Exports a model as two ONNX graphs, the image encoder and one step of greedy decoding, for ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from etils import epath

from caption_jax.export.card_facts import RunFacts
from caption_jax.export.decode_checks import WITHOUT_EFFECT, check_decode_settings
from caption_jax.export.onnx_programs import OnnxPrograms, Program
from caption_jax.export.portable_files import to_portable, versions, write_portable_files
from caption_jax.runs.loading import Model
from caption_jax.runs.workdir import write_json
from input_pipeline.extras import optional_packages, require
from input_pipeline.files import write_atomically

_DECODE_SETTINGS = (
    *("max_length", "min_length", "at_limit", "immediate_repeats"),
    *("banned_words", "banned_endings", "prefix"),
)
_USAGE = """\
    pip install onnxruntime numpy pillow
    python captioner.py photo.jpg

or, from Python, `Captioner(FOLDER).caption(["photo.jpg"])` of `captioner.py`. It decodes greedily, in float32.
`encode.onnx` and `step.onnx` have the weights inside."""


def write_onnx_folder(folder: epath.Path, model: Model, facts: RunFacts, workdir: epath.Path) -> None:
    """Writes a folder with two ONNX graphs and `captioner.py`, which runs them.

    Raises:
        ConfigError: the format does not support a decoding setting of the model.
        MissingPackageError: the extra `onnx` is not installed.
    """
    del workdir
    check_decode_settings(model.description.spec.decode, "onnx", (*_DECODE_SETTINGS, *WITHOUT_EFFECT))
    require_converter()
    programs = OnnxPrograms(to_portable(model.description, "reference", "float32"), model.weights.variables)
    graphs = {"encode.onnx": programs.encode(), "step.onnx": programs.step()}
    contents = {name: _convert(program) for name, program in graphs.items()}
    write_portable_files(folder, model, facts, captioner="onnx_captioner", usage=_USAGE, library="onnx")
    for name, content in contents.items():
        write_atomically(folder / name, content)
    write_json(folder / "config.json", _make_config(model, programs, graphs))


def require_converter() -> None:
    """Raises MissingPackageError if the extra `onnx` is not installed."""
    require("--to=onnx", "jax2onnx")


def _convert(program: Program) -> bytes:
    """Converts a program to ONNX."""
    with optional_packages("--to=onnx"), _without_library_warnings():
        from jax2onnx import to_onnx

        graph = to_onnx(
            program.function,
            list(program.inputs.values()),
            input_names=list(program.inputs),
            output_names=list(program.outputs),
        )
    del graph.graph.value_info[:]  # shapes of intermediate results, some of them wrong; ONNX Runtime infers them
    return graph.SerializeToString()


@contextlib.contextmanager
def _without_library_warnings() -> Iterator[None]:
    """Hides warnings about converters for other libraries, and about shapes that are not stated in the graph."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _make_config(model: Model, programs: OnnxPrograms, graphs: dict[str, Program]) -> dict[str, Any]:
    decode = model.description.spec.decode
    return {
        "format": "caption-jax onnx 1",
        "step": model.weights.step,
        "versions": versions("jax2onnx", "onnx"),
        "length": programs.length,
        "decode": {"method": "greedy"} | {name: getattr(decode, name) for name in _DECODE_SETTINGS},
        "graphs": {
            name: {
                "inputs": {key: f"{value.dtype}{list(value.shape)}" for key, value in program.inputs.items()},
                "outputs": list(program.outputs),
            }
            for name, program in graphs.items()
        },
    }

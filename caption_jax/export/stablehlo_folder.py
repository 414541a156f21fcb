"""Exports a model as StableHLO programs that need only JAX, for all batch sizes and platforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import export
from jaxtyping import Array, Float, UInt8
from safetensors.numpy import save

from caption_jax.export.card_facts import RunFacts
from caption_jax.export.decode_checks import check_decode_settings
from caption_jax.export.portable_files import to_portable, versions, write_portable_files
from caption_jax.inference.caption_program import make_caption_function
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.inference.ensemble import SINGLE_MODEL
from caption_jax.runs.artifact import WEIGHTS
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import Model
from caption_jax.runs.weights import flatten_arrays, unflatten_arrays
from caption_jax.runs.workdir import write_json
from caption_jax.specs import as_mapping
from input_pipeline.files import write_atomically

PLATFORMS = ("cpu", "cuda", "tpu")

_Weights = dict[str, np.ndarray]
_USAGE = """\
    pip install jax flatbuffers numpy pillow
    python captioner.py photo.jpg

or, from Python, `Captioner(FOLDER).caption(["photo.jpg"])` of `captioner.py`. For GPUs or TPUs, install
`jax[cuda12]` or `jax[tpu]`. `config.json` has the version of JAX that wrote the programs: use a release that is at most
6 months newer, or at most 3 weeks older."""


def write_stablehlo_folder(folder: epath.Path, model: Model, facts: RunFacts, workdir: epath.Path) -> None:
    """Writes a folder with two programs of `jax.export`, their weights, and `captioner.py`, which runs them.

    Raises:
        ConfigError: captions are chosen by consensus.
    """
    del workdir
    decode = model.description.spec.decode
    check_decode_settings(decode, "stablehlo", {*as_mapping(decode)} - {"consensus_weight"})
    description = to_portable(model.description, "fast")
    weights = {name: array.astype(np.float32) for name, array in flatten_arrays(model.weights.variables).items()}
    weights, programs = _export_all(description, weights)
    write_portable_files(folder, model, facts, captioner="stablehlo_captioner", usage=_USAGE, library="jax")
    for name, program in programs.items():
        write_atomically(folder / f"{name}.bin", bytes(program.serialize()))
    write_json(folder / "config.json", _make_config(model, programs, list(weights)))
    write_atomically(folder / WEIGHTS, save(weights))


def _export_all(description: RunDescription, weights: _Weights) -> tuple[_Weights, dict[str, export.Exported]]:
    """Returns the weights that at least one program uses, and the programs, which take only these weights."""
    functions, size = make_functions(description), description.preprocessing.size
    used = set().union(*(_find_used(function, weights, size) for function in functions.values()))
    unused = {name: np.zeros_like(array) for name, array in weights.items() if name not in used}
    weights, functions = {name: weights[name] for name in weights if name in used}, make_functions(description, unused)
    return weights, {name: _export(function, weights, size) for name, function in functions.items()}


def _find_used(function: Callable[..., Any], weights: _Weights, size: int) -> set[str]:
    """Returns the names of the weights that a function uses. An exported program may keep arguments without use."""
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    jaxpr = jax.make_jaxpr(function)(weights, pixels).jaxpr
    used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    arguments = jaxpr.invars[:-1]  # without the pixels
    return {name for name, variable in zip(sorted(weights), arguments, strict=True) if id(variable) in used}


def make_functions(description: RunDescription, unused: _Weights | None = None) -> dict[str, Callable[..., Any]]:
    """Returns the functions of the two programs, whose arguments are the weights by name, and pixels.

    Args:
        description: description of the model.
        unused: weights that the functions do not take, because they have no effect; Flax still looks them up.
    """
    generate = make_caption_function(description, description.spec.decode, SINGLE_MODEL)

    def encode(weights: _Weights, pixels: UInt8[Array, "batch size size 3"]) -> dict[str, Float[Array, "batch ..."]]:
        model, variables = description.model(), unflatten_arrays({**(unused or {}), **weights})
        features = encode_for_decoding(model, variables, pixels, None, description)
        result = {"memory": features.memory}
        if description.has_joint_embedding:
            result["embedding"] = model.apply(variables, features, method="embed_images")
        return result

    def caption(weights: _Weights, pixels: UInt8[Array, "batch size size 3"]) -> tuple[Array, Array]:
        return generate(unflatten_arrays({**(unused or {}), **weights}), pixels, None, ())

    return {"encode": encode, "caption": caption}


def _export(function: Callable[..., Any], weights: _Weights, size: int) -> export.Exported:
    """Exports a function for any batch size.

    The checks of `jax.export` stay on: it rejects custom calls without a guarantee of compatibility.
    """
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    pixels = jax.ShapeDtypeStruct(export.symbolic_shape(f"batch, {size}, {size}, 3"), np.uint8)
    return export.export(jax.jit(function), platforms=PLATFORMS)(shapes, pixels)


def _list_arguments(program: export.Exported, weights: Sequence[str]) -> list[str]:
    """Returns the names of the arguments of a program's StableHLO, which lacks those that it does not use."""
    names = [*sorted(weights), "pixels"]  # the order in which JAX flattens dictionaries and positional arguments
    return [names[index] for index in program.module_kept_var_idx]


def _make_config(model: Model, programs: dict[str, export.Exported], weights: Sequence[str]) -> dict[str, Any]:
    return {
        "format": "caption-jax stablehlo 1",
        "step": model.weights.step,
        "versions": versions("jaxlib"),
        "platforms": list(PLATFORMS),
        "decode": as_mapping(model.description.spec.decode),
        "programs": {name: _describe(name, program, weights) for name, program in programs.items()},
    }


def _describe(name: str, program: export.Exported, weights: Sequence[str]) -> dict[str, Any]:
    results = program.out_tree.unflatten([str(shape) for shape in program.out_avals])
    return {"file": f"{name}.bin", "arguments": _list_arguments(program, weights), "results": results}

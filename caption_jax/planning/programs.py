"""The programs of a run, lowered as in the run itself, for devices that need not exist on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from caption_jax.inference.captioning import caption_batch
from caption_jax.parameters.freezing import frozen_norms
from caption_jax.parameters.sharding import batch_sharding, replicated
from caption_jax.planning.flops import count_matrix_flops
from caption_jax.training.program import Program
from caption_jax.training.step import Microbatch, NonDifferentiated, split_params

PyTree = Any
_ALL_CAPTIONS = 5  # assumed for `data.captions_per_image` 0, as in COCO and Flickr


@dataclass(frozen=True)
class Planned:
    """A program of a run.

    Attributes:
        name: "train" (the training step), "decode" (images to captions), or "encoder" (the part of the training step
            in the image encoder: forward pass, and gradients of its parameters from gradients of its features).
        lower: lowers the program for a number of images per batch, over all devices.
        count: returns the matrix FLOPs per image, counted before compilation; None if the trip count of the loop is
            unknown.
    """

    name: str
    lower: Callable[[int], jax.stages.Lowered]
    count: Callable[[], float] | None


def planned_programs(program: Program, frozen: frozenset[str]) -> dict[str, Planned]:
    """Returns the programs of a run in the phase in which the parameters at the paths `frozen` are frozen."""
    return {
        "train": Planned("train", partial(_lower_train, program, frozen), partial(_count_train, program, frozen)),
        "decode": Planned("decode", partial(_lower_decode, program), None),
        "encoder": Planned(
            "encoder", partial(_lower_encoder, program, frozen), partial(_count_encoder, program, frozen)
        ),
    }


def train_batch(program: Program, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch of `rows` images."""
    description, data = program.description, program.description.spec.data
    captions, length = data.captions_per_image or _ALL_CAPTIONS, data.max_length
    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, captions, length), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
        "index": jax.ShapeDtypeStruct((rows,), jnp.int32),
        **_context(program, rows),
    }
    if not data.feature_cache.stage:
        return batch | {"image": _images(program, rows)}
    stored = partial(description.model().apply, method="encode_to_stage")
    pixels = jax.ShapeDtypeStruct((rows, data.image_size, data.image_size, 3), jnp.float32)
    features = jax.eval_shape(lambda v, x: stored(v, data.feature_cache.stage, x), _variables(program), pixels)
    return batch | {"features": jax.ShapeDtypeStruct(features.shape, jnp.dtype(data.feature_cache.dtype))}


def _images(program: Program, rows: int) -> jax.ShapeDtypeStruct:
    size = program.description.preprocessing.size
    return jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)


def _context(program: Program, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    spec = program.description.spec
    shape = (rows, spec.model.context.max_texts, spec.data.max_length)
    return {"context": jax.ShapeDtypeStruct(shape, jnp.int32)} if spec.model.context.max_texts else {}


def _variables(program: Program) -> PyTree:
    return {"params": program.abstract_state.params, "batch_stats": program.abstract_state.batch_stats}


def _lower_train(program: Program, frozen: frozenset[str], rows: int) -> jax.stages.Lowered:
    return program.update(frozen).lower(program.abstract_state, train_batch(program, rows), program.constants)


def _count_train(program: Program, frozen: frozenset[str]) -> float:
    """Counts on the smallest batch, because the FLOPs per image of a contrastive loss grow with the batch size."""
    step, rows = program.uncompiled_step(frozen), _min_batch_size(program)

    def run(trained: dict, fixed: dict, batch_stats: PyTree, constants: PyTree, batch: dict) -> PyTree:
        microbatch = Microbatch(batch, 0, jax.random.key(0))
        return step.objective_outputs(trained, NonDifferentiated(fixed, constants), batch_stats, microbatch)[0]

    trained, fixed = split_params(program.abstract_state.params, frozen)
    arrays = trained, fixed, program.abstract_state.batch_stats, program.constants, train_batch(program, rows)
    return count_matrix_flops(run, *arrays).total / rows


def _lower_decode(program: Program, rows: int) -> jax.stages.Lowered:
    """Lowers the decoding of `make_eval_step`, without the loss on the references."""
    description, mesh = program.description, program.mesh
    model, settings = description.model(), description.spec.decode

    def captions(variables: PyTree, batch: dict[str, jax.Array]) -> jax.Array:
        return caption_batch(model, variables, batch, description, settings)[1].tokens

    batch = {"image": _images(program, rows), "index": jax.ShapeDtypeStruct((rows,), jnp.int32)}
    step = jax.jit(captions, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
    return step.lower(_variables(program), batch | _context(program, rows))


def _lower_encoder(program: Program, frozen: frozenset[str], rows: int) -> jax.stages.Lowered:
    run, trained, *others = _encoder(program, frozen)
    pixels = _images(program, rows)
    features = jax.eval_shape(run, trained, *others, pixels)[0]

    def step(trained: dict, fixed: dict, batch_stats: PyTree, pixels: jax.Array, gradient: jax.Array) -> PyTree:
        _, pullback, batch_stats = jax.vjp(lambda t: run(t, fixed, batch_stats, pixels), trained, has_aux=True)
        return pullback(gradient)[0], batch_stats

    full, split = replicated(program.mesh), batch_sharding(program.mesh)
    shardings = {"in_shardings": (full, full, full, split, split), "out_shardings": full}
    return jax.jit(step, **shardings).lower(trained, *others, pixels, features)


def _count_encoder(program: Program, frozen: frozenset[str]) -> float:
    run, *arrays = _encoder(program, frozen)
    rows = _min_batch_size(program)
    return count_matrix_flops(run, *arrays, _images(program, rows)).total / rows


def _min_batch_size(program: Program) -> int:
    """Number of images in the smallest training batch that the model supports."""
    return program.description.spec.model.encoder.batch_multiple


def _encoder(program: Program, frozen: frozenset[str]) -> tuple[Callable, dict, dict, PyTree]:
    """Returns the training pass of the backbone, its trained and frozen parameters, and its running statistics.

    The pass takes these and pixels, and returns features and updated statistics.
    """
    description = program.description
    model = description.model(frozen_norms(frozen))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _variables(program))
    params, statistics = (
        {"image_encoder": {"backbone": shapes[kind].get("image_encoder", {}).get("backbone", {})}}
        for kind in ("params", "batch_stats")
    )

    def run(trained: dict, fixed: dict, batch_stats: PyTree, pixels: jax.Array) -> tuple[jax.Array, PyTree]:
        features, updated = model.apply(
            {"params": traverse_util.unflatten_dict({**fixed, **trained}, sep="/"), "batch_stats": batch_stats},
            description.preprocessing.normalise(pixels),
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
            method=lambda model, images: model.image_encoder.backbone(images, train=True),
        )
        return features, updated["batch_stats"]

    return run, *split_params(params, frozen), statistics

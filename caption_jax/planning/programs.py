"""The programs of a run, lowered as in the run itself, for devices that may not be attached to this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from caption_jax.decoding.consensus import Consensus
from caption_jax.evaluation.eval_step import make_eval_step
from caption_jax.inference.captioning import caption_batch
from caption_jax.parameters.freezing import frozen_norms
from caption_jax.parameters.sharding import batch_sharding, replicated
from caption_jax.planning.assumed_packing import ASSUMED_CAPTIONS, assume_layout, packed_shapes
from caption_jax.planning.flops import count_matrix_flops
from caption_jax.rewards.caption_words import MAX_WORDS_PER_CHUNK, WordTable
from caption_jax.rewards.frequency_table import FrequencyTable
from caption_jax.runs.description import RunDescription
from caption_jax.specs import RunSpec
from caption_jax.training.program import Program
from caption_jax.training.step import FixedInputs, Microbatch, split_params
from input_pipeline.block_layout import BlockLayout

PyTree = Any
_MANY_IMAGES = 1024  # images per row, of which extra blocks are a small fraction


@dataclass(frozen=True)
class PlannedProgram:
    """A program of a run.

    Attributes:
        name: "train" (the training step), "evaluate" (the evaluation step: captions, and the loss of the references),
            "decode" (images to captions), or "encoder" (the image encoder's part of the training step: the forward
            pass, and the gradients of its parameters given those of its features).
        lower: lowers the program for a global batch size.
        count_flops: returns the matrix FLOPs per image, counted before compilation; None if this is not implemented.
        tokens: maximum number of iterations of the loop over tokens; 1 if there is none.
    """

    name: str
    lower: Callable[[int], jax.stages.Lowered]
    count_flops: Callable[[], float] | None = None
    tokens: int = 1


def make_planned_programs(program: Program, frozen: frozenset[str]) -> dict[str, PlannedProgram]:
    """Returns the programs of a run in the phase that freezes the parameters at the paths `frozen`, by name."""
    tokens = count_generated_tokens(program.description.spec)
    planned = (
        PlannedProgram("train", partial(_lower_train, program, frozen), partial(_count_train_flops, program, frozen)),
        PlannedProgram("evaluate", partial(_lower_evaluate, program), tokens=tokens),
        PlannedProgram("decode", partial(_lower_decode, program), tokens=tokens),
        PlannedProgram(
            "encoder", partial(_lower_encoder, program, frozen), partial(_count_encoder_flops, program, frozen)
        ),
    )
    return {one.name: one for one in planned}


def count_generated_tokens(spec: RunSpec) -> int:
    """Returns the maximum number of tokens of a generated caption, including </s>."""
    return min(spec.decode.max_length or spec.data.max_length, spec.data.max_length) - 1


def _train_batch_shapes(
    program: Program, batch_size: int, layout: BlockLayout | None, rows: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a training batch, whose captions are packed into `rows` rows if there is a `layout`."""
    description, data = program.description, program.description.spec.data
    batch = _caption_shapes(program, batch_size)
    if layout is not None:
        batch |= packed_shapes(layout, rows, batch_size // rows)
    if not data.feature_cache.stage:
        return batch | {"image": _image_shape(program, batch_size)}
    encode = partial(description.model().apply, method="encode_to_stage")
    pixels = jax.ShapeDtypeStruct((batch_size, data.image_size, data.image_size, 3), jnp.float32)
    features = jax.eval_shape(
        lambda variables, x: encode(variables, data.feature_cache.stage, x), _variable_shapes(program), pixels
    )
    return batch | {"features": jax.ShapeDtypeStruct(features.shape, jnp.dtype(data.feature_cache.dtype))}


def _caption_shapes(program: Program, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch, except those of its images."""
    data = program.description.spec.data
    captions_per_image = data.captions_per_image or ASSUMED_CAPTIONS
    return {
        "tokens": jax.ShapeDtypeStruct((batch_size, captions_per_image, data.max_length), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
        "index": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        **_context_shapes(program, batch_size),
    }


def _image_shape(program: Program, batch_size: int) -> jax.ShapeDtypeStruct:
    size = program.description.preprocessing.size
    return jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)


def _context_shapes(program: Program, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    spec = program.description.spec
    shape = (batch_size, spec.model.context.max_texts, spec.data.max_length)
    return {"context": jax.ShapeDtypeStruct(shape, jnp.int32)} if spec.model.context.max_texts else {}


def _variable_shapes(program: Program) -> PyTree:
    return {"params": program.abstract_state.params, "batch_stats": program.abstract_state.batch_stats}


def _lower_train(program: Program, frozen: frozenset[str], batch_size: int) -> jax.stages.Lowered:
    spec, mesh = program.description.spec, program.mesh
    rows = mesh.shape["data"] * spec.optimizer.grad_accum_steps
    batch = _train_batch_shapes(program, batch_size, assume_layout(spec, mesh, batch_size // rows), rows)
    return program.update(frozen).lower(program.abstract_state, batch, program.constants)


def _count_train_flops(program: Program, frozen: frozenset[str]) -> float:
    """Returns the FLOPs per image of the smallest batch on one device, without extra blocks of captions.

    The FLOPs of a contrastive loss grow with the batch size.
    """
    step, batch_size = dataclasses.replace(program.uncompiled_step(frozen), mesh=None), _min_batch_size(program)

    def forward(trainable: dict, frozen_params: dict, batch_stats: PyTree, constants: PyTree, batch: dict) -> PyTree:
        fixed, microbatch = FixedInputs(frozen_params, constants), Microbatch(batch, 0, jax.random.key(0))
        return step.objective_outputs(trainable, fixed, batch_stats, microbatch)[0]

    params = split_params(program.abstract_state.params, frozen)
    layout = assume_layout(program.description.spec, program.mesh, _MANY_IMAGES)
    layout = None if layout is None else dataclasses.replace(layout, extra=0)
    batch = _train_batch_shapes(program, batch_size, layout, rows=1)
    flops = count_matrix_flops(forward, *params, program.abstract_state.batch_stats, program.constants, batch)
    return flops.total / batch_size


def _lower_evaluate(program: Program, batch_size: int) -> jax.stages.Lowered:
    """Lowers the evaluation step without evaluators, whose arrays are usually small."""
    description, mesh = program.description, program.mesh
    step = jax.jit(
        make_eval_step(
            description.model(),
            description,
            shards=mesh.shape["data"],
            consensus=_assume_consensus(description),
        ),
        in_shardings=(None, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
    batch = _caption_shapes(program, batch_size) | {"image": _image_shape(program, batch_size)}
    return step.lower(_variable_shapes(program), batch)


def _lower_decode(program: Program, batch_size: int) -> jax.stages.Lowered:
    """Lowers the decoding part of `make_eval_step`, without the loss."""
    description, mesh = program.description, program.mesh
    model, settings = description.model(), description.spec.decode
    consensus = _assume_consensus(description)

    def decode(variables: PyTree, batch: dict[str, jax.Array]) -> jax.Array:
        return caption_batch(model, variables, batch, description, settings, consensus=consensus)[1].tokens

    batch = {"image": _image_shape(program, batch_size), "index": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}
    step = jax.jit(decode, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
    return step.lower(_variable_shapes(program), batch | _context_shapes(program, batch_size))


def _assume_consensus(description: RunDescription) -> Consensus | None:
    """Returns the inputs of a ranking by consensus, with tables of a single entry."""
    if not description.spec.decode.consensus_weight:
        return None
    size = description.model_settings.vocabulary_size
    pairs, flags, one = np.zeros((size, 2), np.uint32), np.ones(size, bool), np.zeros((1, 2), np.uint32)
    words = WordTable(
        offsets=pairs,
        multipliers=pairs,
        starts_chunk=flags,
        is_punctuation=~flags,
        chunk_keys=one,
        chunk_words=np.zeros((1, MAX_WORDS_PER_CHUNK, 2), np.uint32),
        chunk_counts=np.ones(1, np.int32),
        function_words=one,
        end=one[0],
    )
    return Consensus(words, FrequencyTable(one, np.zeros(1, np.float32), np.float32(1)))


def _lower_encoder(program: Program, frozen: frozenset[str], batch_size: int) -> jax.stages.Lowered:
    forward, *variables = _make_encoder_pass(program, frozen)
    pixels = _image_shape(program, batch_size)
    features = jax.eval_shape(forward, *variables, pixels)[0]

    def step(
        trainable: dict, frozen_params: dict, batch_stats: PyTree, pixels: jax.Array, gradient: jax.Array
    ) -> PyTree:
        _, pullback, batch_stats = jax.vjp(
            lambda params: forward(params, frozen_params, batch_stats, pixels), trainable, has_aux=True
        )
        return pullback(gradient)[0], batch_stats

    for_state, for_batch = replicated(program.mesh), batch_sharding(program.mesh)
    shardings = {"in_shardings": (for_state, for_state, for_state, for_batch, for_batch), "out_shardings": for_state}
    return jax.jit(step, **shardings).lower(*variables, pixels, features)


def _count_encoder_flops(program: Program, frozen: frozenset[str]) -> float:
    forward, *variables = _make_encoder_pass(program, frozen)
    batch_size = _min_batch_size(program)
    return count_matrix_flops(forward, *variables, _image_shape(program, batch_size)).total / batch_size


def _min_batch_size(program: Program) -> int:
    """Returns the size of the smallest training batch that the model supports."""
    return program.description.spec.model.encoder.batch_multiple


def _make_encoder_pass(program: Program, frozen: frozenset[str]) -> tuple[Callable, dict, dict, PyTree]:
    """Creates the forward pass of the backbone in training.

    Returns:
        The forward pass `(trainable, frozen, batch_stats, pixels) -> (features, updated batch_stats)`, and the shapes
        of its first three arguments.
    """
    description = program.description
    model = description.model(frozen_norms(frozen))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _variable_shapes(program))
    params, statistics = (
        {"image_encoder": {"backbone": shapes[collection].get("image_encoder", {}).get("backbone", {})}}
        for collection in ("params", "batch_stats")
    )

    def forward(
        trainable: dict, frozen_params: dict, batch_stats: PyTree, pixels: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        params = traverse_util.unflatten_dict({**frozen_params, **trainable}, sep="/")
        features, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            description.preprocessing.normalise(pixels),
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
            method=lambda model, images: model.image_encoder.backbone(images, train=True),
        )
        return features, updated["batch_stats"]

    return forward, *split_params(params, frozen), statistics

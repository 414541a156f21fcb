"""The image encoder and one step of greedy decoding as functions that convert to ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Int, UInt8

from caption_jax.decoding.constraints import Progress, constrain
from caption_jax.decoding.dispatch import make_constraints
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.models.cache import Cache, LayerCache
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.ops.implementations import FAST, REFERENCE
from caption_jax.runs.description import RunDescription
from input_pipeline.special_tokens import BOS, PAD

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A function with named arguments and results.

    Attributes:
        function: the function, which returns a tuple of arrays.
        inputs: shape and dtype of each argument.
        outputs: name of each result.
    """

    function: Callable[..., tuple[Array, ...]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OnnxPrograms:
    """The programs of a model, for any batch size. Their weights are constants.

    Attributes:
        description: description of the model, in float32 and with reference operations.
        variables: `params` and `batch_stats`.
    """

    description: RunDescription
    variables: PyTree

    @property
    def length(self) -> int:
        """Maximum number of tokens after <s>."""
        limit = self.description.model_settings.max_length
        return min(self.description.spec.decode.max_length or limit, limit) - 1

    def encode(self) -> Program:
        """Returns the program that maps pixels to the memory, and its keys and values for each layer."""
        description, model = self.description, _make_model(self.description)
        size = description.preprocessing.size

        def encode(pixels: UInt8[Array, "batch size size 3"]) -> tuple[Array, ...]:
            features = encode_for_decoding(model, self.variables, pixels, None, description)
            cache = model.apply(self.variables, features, length=1, method="start_cache")
            layers = [(layer.memory_keys, layer.memory_values) for layer in cache.layers]
            return (features.memory, *(array for layer in layers for array in layer))

        shape = export.symbolic_shape(f"batch, {size}, {size}, 3")
        pixels = jax.ShapeDtypeStruct(shape, np.uint8)
        return Program(encode, {"pixels": pixels}, ("memory", *self._list_names("memory_keys", "memory_values")))

    def step(self) -> Program:
        """Returns the program of one step of greedy decoding, with the constraints of `config.decode`.

        Its arguments are the tokens after <s> so far [batch, length], their number [], the keys and values of the
        memory, and those of the tokens so far. It returns the next token [batch], which is <pad> if the constraints
        allow no token, its log-probability [batch], and the new keys and values of the tokens.
        """
        description, model = self.description, _make_model(self.description)
        constraints = make_constraints(description.spec.decode, description.vocabulary)

        def step(tokens: Int[Array, "batch length"], step: Int[Array, ""], *arrays: Array) -> tuple[Array, ...]:
            last = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(step - 1, 0), 1)
            last = jnp.where(step == 0, BOS, last)
            output = model.apply(
                self.variables, last[:, :, None], cache=_make_cache(tokens, step, arrays), method="decode"
            )
            logits = output.logits[:, :, 0]
            log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
            allowed = constrain(constraints, log_probs, Progress(tokens[:, None], step))[:, 0]
            token = jnp.where(jnp.isneginf(allowed.max(-1)), PAD, allowed.argmax(-1)).astype(jnp.int32)
            log_prob = jnp.take_along_axis(log_probs[:, 0], token[:, None], axis=1)[:, 0]
            return (token, log_prob, *(array for layer in output.cache.layers for array in (layer.keys, layer.values)))

        return Program(step, self._describe_step(), ("token", "log_prob", *self._list_names("new_keys", "new_values")))

    def _describe_step(self) -> dict[str, jax.ShapeDtypeStruct]:
        scope = export.SymbolicScope()

        def describe(shape: str, dtype: type) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)

        spec = self.description.spec.model.decoder
        heads, depth = spec.heads, spec.width // spec.heads
        shapes = {"memory_keys": (depth, positions := self._count_positions()), "memory_values": (positions, depth)}
        shapes |= {"keys": (depth, self.length), "values": (self.length, depth)}
        arrays = {
            f"{name}_{layer}": describe(f"batch, {heads}, {rows}, {columns}", np.float32)
            for layer in range(spec.layers)
            for name, (rows, columns) in shapes.items()
        }
        return {
            "tokens": describe(f"batch, {self.length}", np.int32),
            "step": jax.ShapeDtypeStruct((), np.int32),
        } | arrays

    def _count_positions(self) -> int:
        program = self.encode()
        pixels = program.inputs["pixels"]
        return jax.eval_shape(program.function, jax.ShapeDtypeStruct((1, *pixels.shape[1:]), np.uint8))[0].shape[1]

    def _list_names(self, *names: str) -> list[str]:
        return [f"{name}_{layer}" for layer in range(self.description.spec.model.decoder.layers) for name in names]


def _make_model(description: RunDescription) -> ImageCaptioningModel:
    """Builds the model without the reference of `memory_attention`.

    That copies the memory per caption, with an integer division that jax2onnx 0.13 does not convert for a symbolic
    batch. Here, the fast one has no branch per platform, because a step has a single token, so it converts too.
    """
    model = description.model()
    ops = dataclasses.replace(REFERENCE, memory_attention=FAST.memory_attention)
    encoder, memory_encoder = model.image_encoder, model.image_encoder.memory_encoder
    if memory_encoder is not None:
        encoder = encoder.clone(memory_encoder=memory_encoder.clone(ops=ops))
    return model.clone(image_encoder=encoder, decoder=model.decoder.clone(ops=ops))


def _make_cache(tokens: Int[Array, "batch length"], step: Int[Array, ""], arrays: tuple[Array, ...]) -> Cache:
    layers = []
    for memory_keys, memory_values, keys, values in zip(*(arrays[start::4] for start in range(4)), strict=True):
        layers.append(LayerCache(keys, values, memory_keys, memory_values))
    ancestors = jnp.zeros((tokens.shape[0], 1, tokens.shape[1]), jnp.int32)
    return Cache(tuple(layers), ancestors, step, None)

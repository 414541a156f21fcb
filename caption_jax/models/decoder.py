"""The caption decoder: token embedding, causal layers with cross-attention to the memory, tied output embedding."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.attention import CrossAttention, SelfAttention
from caption_jax.models.cache import Cache, LayerCache, create_cache
from caption_jax.models.layers import ACTIVATIONS, Dropout, FeedForward
from caption_jax.ops.dropout import Bits
from caption_jax.ops.implementations import FAST, Ops
from caption_jax.ops.int8_product import dequantise
from caption_jax.ops.mixed_precision import einsum_float32
from caption_jax.ops.segments import Segments

INIT_STDDEV = 0.02  # standard deviation of the initial embeddings, as in RoBERTa


class DecoderOutput(flax.struct.PyTreeNode):
    """Outputs of the decoder.

    Attributes:
        logits: float32 logits of the next token.
        states: final hidden states, the input of the output layer.
        cache: updated cache; None without a cache.
        attention: float32 cross-attention weights; None unless requested.
    """

    logits: Float[Array, "*rows tokens vocabulary"]
    states: Float[Array, "*rows tokens width"]
    cache: Cache | None
    attention: Float[Array, "layers *rows heads tokens memory"] | None


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the memory and a feed-forward network, each with a residual connection.

    Attributes:
        width: feature size of the tokens and the memory.
        heads: number of attention heads; must divide `width`.
        feed_forward: hidden width of the feed-forward network.
        dropout: dropout rate of the output of each sublayer, and inside the feed-forward network.
        dropout_bits: see `Dropout`.
        norm: "pre" (normalise the input of each sublayer; Xiong et al., 2020, https://arxiv.org/abs/2002.04745) or
            "post" (normalise after the residual connection; Vaswani et al., 2017).
        norm_epsilon: epsilon of the layer norms.
        activation: activation of the feed-forward network, "gelu" or "gelu_tanh".
        output_scale: variance scale of each sublayer's initial output projection.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
        ops: implementation of the operations.
    """

    width: int
    heads: int
    feed_forward: int
    dropout: float = 0.0
    dropout_bits: Bits = 8
    norm: str = "pre"
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    def setup(self):
        """Creates the submodules."""
        if self.norm not in ("pre", "post"):
            raise ValueError(f'config.model.decoder.norm is {self.norm!r}; it must be "pre" or "post"')
        if self.width % self.heads:
            raise ValueError(f"config.model.decoder.width={self.width} must be a multiple of its heads={self.heads}")
        if self.activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"config.model.decoder.activation is {self.activation!r}; it must be one of {names}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.self_attention = SelfAttention(self.width, self.heads, self.output_scale, **dtypes, ops=self.ops)
        self.cross_attention = CrossAttention(self.width, self.heads, self.output_scale, **dtypes, ops=self.ops)
        self.feed_forward_network = FeedForward(
            self.width,
            self.feed_forward,
            self.dropout,
            self.dropout_bits,
            self.activation,
            self.output_scale,
            **dtypes,
            ops=self.ops,
            name="feed_forward",
        )
        self.self_attention_norm = nn.LayerNorm(self.norm_epsilon, **dtypes)
        self.cross_attention_norm = nn.LayerNorm(self.norm_epsilon, **dtypes)
        self.feed_forward_norm = nn.LayerNorm(self.norm_epsilon, **dtypes)
        self.residual_dropout = Dropout(self.dropout, self.dropout_bits, self.ops)

    def project_memory(
        self, memory: Float[Array, "memories memory width"]
    ) -> tuple[Float[Array, "memories heads depth memory"], Float[Array, "memories heads memory depth"]]:
        """Returns keys and values for cross-attention."""
        return self.cross_attention.project(memory.astype(self.dtype))

    def __call__(
        self,
        x: Float[Array, "*rows tokens width"],
        memory: Float[Array, "memories memory width"] | None = None,
        *,
        segments: Segments | None = None,
        memory_mask: Bool[Array, "memories memory"] | None = None,
        cache: LayerCache | None = None,
        position: int | Int[Array, ""] | None = None,
        visible: Bool[Array, "pools targets slots"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "*rows tokens width"], LayerCache | None, Float[Array, "*rows heads tokens memory"]]:
        """Returns the output states, the updated cache and the cross-attention weights.

        `segments` maps each token to its caption. If None, each row is one caption: [batch, captions, tokens, width].
        `memory` contains an array per image, or per block of the rows (`Segments.to_memories`).

        With a cache, `memory` is ignored because the cache contains its keys and values. `position` and `visible` come
        from the enclosing `Cache` (`position` and `visible_slots`).
        """
        keys, values = self.project_memory(memory) if cache is None else (cache.memory_keys, cache.memory_values)
        decoding = cache is not None
        segments = Segments.one_per_row(x.shape[:-1]) if segments is None else segments
        dropout = {"train": train, "ids": segments.token_ids}

        y = self._pre_norm(self.self_attention_norm, x)
        y, cache = self.self_attention(y, segments, cache, position, visible)
        x = self._post_norm(self.self_attention_norm, x + self.residual_dropout(y, **dropout))

        y = self._pre_norm(self.cross_attention_norm, x)
        y, attention = self.cross_attention(y, keys, values, memory_mask, segments, decoding=decoding)
        x = self._post_norm(self.cross_attention_norm, x + self.residual_dropout(y, **dropout))

        y = self._pre_norm(self.feed_forward_norm, x)
        y = self.feed_forward_network(y, **dropout)
        x = self._post_norm(self.feed_forward_norm, x + self.residual_dropout(y, **dropout))
        return x, cache, attention

    def _pre_norm(self, norm: nn.Module, x: Array) -> Array:
        return norm(x) if self.norm == "pre" else x

    def _post_norm(self, norm: nn.Module, x: Array) -> Array:
        return norm(x) if self.norm == "post" else x


class Decoder(nn.Module):
    """Predicts each next token of an image's captions from the preceding tokens and the image's memory.

    Attributes:
        vocabulary_size: number of tokens in the vocabulary.
        layers: number of `DecoderLayer`s.
        width: feature size of the tokens and the memory.
        heads: number of attention heads; must divide `width`.
        feed_forward: hidden width of the feed-forward networks.
        dropout: dropout rate after the embedding and in the layers.
        token_dropout: fraction of the input tokens except <s> whose embedding is 0 in training, so that the image and
            the other tokens predict what follows (Bowman et al., 2016, https://arxiv.org/abs/1511.06349).
        dropout_bits: see `Dropout`.
        norm: "pre" or "post", see `DecoderLayer`.
        norm_epsilon: epsilon of the layer norms.
        activation: activation of the feed-forward networks, "gelu" or "gelu_tanh".
        positions: position embeddings, "learned" or "sinusoidal".
        max_length: maximum number of tokens per caption.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
        ops: implementation of the operations.
    """

    vocabulary_size: int
    layers: int
    width: int
    heads: int
    feed_forward: int
    dropout: float = 0.0
    token_dropout: float = 0.0
    dropout_bits: Bits = 8
    norm: str = "pre"
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"
    positions: str = "learned"
    max_length: int = 40
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    def setup(self):
        """Creates the submodules."""
        if self.positions not in ("learned", "sinusoidal"):
            raise ValueError(
                f'config.model.decoder.positions is {self.positions!r}; it must be "learned" or "sinusoidal"'
            )
        # The embedding is tied to the output layer. Small initial weights make the initial predictions close to uniform
        # (rather than favouring the input token), and the embedding norm rescales the layers' input to variance 1.
        init = nn.initializers.normal(INIT_STDDEV)
        self.embedding = self.param("embedding", init, (self.vocabulary_size, self.width), self.param_dtype)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (self.vocabulary_size,), self.param_dtype)
        if self.positions == "learned":
            self.position = self.param("position", init, (self.max_length, self.width), self.param_dtype)
        # Pre-norm residual branches are summed without normalisation. Scale them down, so that the sum initially has
        # the variance of a single unscaled branch.
        output_scale = 1 / (3 * self.layers) if self.norm == "pre" else 1.0
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embedding_norm = nn.LayerNorm(self.norm_epsilon, **dtypes)
        self.stack = [
            DecoderLayer(
                self.width,
                self.heads,
                self.feed_forward,
                self.dropout,
                self.dropout_bits,
                self.norm,
                self.norm_epsilon,
                self.activation,
                output_scale,
                **dtypes,
                ops=self.ops,
                name=f"layer_{index}",
            )
            for index in range(self.layers)
        ]
        self.final_norm = nn.LayerNorm(self.norm_epsilon, **dtypes) if self.norm == "pre" else None
        self.embedding_dropout = Dropout(self.dropout, self.dropout_bits, self.ops)
        self.input_dropout = Dropout(self.token_dropout, self.dropout_bits, self.ops)

    def __call__(
        self,
        tokens: Int[Array, "*rows tokens"],
        memory: Float[Array, "batch memory width"] | None = None,
        *,
        segments: Segments | None = None,
        memory_mask: Bool[Array, "batch memory"] | None = None,
        cache: Cache | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> DecoderOutput:
        """Returns the logits of the token that follows each input token.

        The captions of an image share its memory. The logits at position t of a caption depend only on the memory and
        on its tokens up to t, so trailing padding does not affect the logits before it.

        Args:
            tokens: token ids of the captions, starting with <s>; with a cache, the tokens from `cache.position` on.
            memory: memory to attend to; ignored with a cache, which contains its keys and values.
            segments: segments of packed tokens; None for one caption per row, [batch, captions, length], which a cache
                requires.
            memory_mask: True for memory positions to attend to; all positions if None. Ignored with a cache, which has
                its own mask.
            cache: from `start_cache` or the previous call.
            train: enables dropout.
            return_attention: whether to return the cross-attention weights as well.

        Raises:
            ValueError: there are more than `max_length` tokens, or neither a memory nor a cache.
        """
        start = 0 if cache is None else cache.position
        segments = Segments.one_per_row(tokens.shape, start) if segments is None else segments
        if segments.length > self.max_length:
            raise ValueError(f"got {segments.length} tokens, but this decoder has max_length={self.max_length}")
        if memory is None and cache is None:
            raise ValueError("the decoder needs a memory or a cache")
        visible = None
        if cache is not None:
            memory_mask, visible = cache.memory_mask, cache.visible_slots(segments.length)
        else:
            memory = segments.to_memories(memory)
            memory_mask = None if memory_mask is None else segments.to_memories(memory_mask)
        x = self._embed(tokens, segments, train=train)
        x = self.embedding_dropout(x, train=train, ids=segments.token_ids)
        caches, weights = [], []
        for index, layer in enumerate(self.stack):
            layer_cache = None if cache is None else cache.layers[index]
            x, layer_cache, attention = layer(
                x,
                memory,
                segments=segments,
                memory_mask=memory_mask,
                cache=layer_cache,
                position=start,
                visible=visible,
                train=train,
            )
            caches.append(layer_cache)
            weights.append(attention)
        if cache is not None:
            cache = cache.replace(layers=tuple(caches), position=cache.position + segments.length)
        states = (x if self.final_norm is None else self.final_norm(x)).astype(self.dtype)
        return DecoderOutput(self._logits(states), states, cache, jnp.stack(weights) if return_attention else None)

    def output_layer(self) -> tuple[Float[Array, "vocabulary width"], Float[Array, " vocabulary"]]:
        """Returns the float32 parameters of the output layer, `logits = states @ embedding.T + bias`.

        The operations cast the embedding to the dtype of the states, so that its gradient is not cast.
        """
        return self.embedding, self.output_bias.astype(jnp.float32)

    def start_cache(
        self,
        memory: Float[Array, "batch memory width"],
        *,
        memory_mask: Bool[Array, "batch memory"] | None = None,
        rows: int = 1,
        groups: int = 1,
        length: int | None = None,
    ) -> Cache:
        """Returns an empty cache for `rows` captions per image and `length` tokens (`max_length` by default).

        Rows can be reordered (`Cache.reorder`) within each of the `groups` groups of equal size.

        Raises:
            ValueError: `length` exceeds `max_length`, or `groups` does not divide `rows`.
        """
        length = self.max_length if length is None else length
        if length > self.max_length:
            raise ValueError(f"got a cache length of {length}, but this decoder has max_length={self.max_length}")
        return create_cache(
            tuple(layer.project_memory(memory) for layer in self.stack), memory_mask, rows, groups, length
        )

    def _embed(
        self, tokens: Int[Array, "*tokens"], segments: Segments, *, train: bool
    ) -> Float[Array, "*tokens width"]:
        if self.has_variable("int8", "embedding"):  # see `stored_dtypes.restore`
            x = dequantise(jax.tree.map(lambda a: jnp.take(a, tokens, axis=0), self.get_variable("int8", "embedding")))
        else:
            x = jnp.take(self.embedding, tokens, axis=0)
        positions = segments.positions
        if train and self.token_dropout:
            ones = jnp.ones((*tokens.shape, 1), x.dtype)
            is_kept = (self.input_dropout(ones, train=True, ids=segments.token_ids) > 0) | (positions == 0)[..., None]
            x = jnp.where(is_kept, x, 0)
        if self.positions == "learned":
            position_embedding = self.position
        else:  # scaled to the magnitude of the initial embeddings
            position_embedding = 2**0.5 * INIT_STDDEV * jnp.asarray(make_sinusoids(self.max_length, self.width))
        return self.embedding_norm(x + jnp.take(position_embedding, positions, axis=0, mode="clip"))

    def _logits(self, states: Float[Array, "*tokens width"]) -> Float[Array, "*tokens vocabulary"]:
        embedding, bias = self.output_layer()
        if self.has_variable("int8", "embedding"):
            return self.ops.int8_product(states, self.get_variable("int8", "embedding"), inputs="columns") + bias
        return einsum_float32("...d,vd->...v", states, embedding) + bias


def make_sinusoids(length: int, width: int) -> np.ndarray:
    """Returns position embeddings [length, width] of sines, then cosines, with wavelengths from 2 pi to 10,000 x 2 pi.

    See Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.
    """
    frequencies = 1e4 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width].astype(np.float32)

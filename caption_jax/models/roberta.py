"""RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692): BERT's encoder (Devlin et al., 2018), trained longer.

Post-norm transformer layers over token, position and type embeddings. The parameter paths are those of transformers'
`FlaxRobertaModel` without its pooler, so that its checkpoints load as they are:

    embeddings/{word,position,token_type}_embeddings/embedding, embeddings/LayerNorm/{scale,bias}
    encoder/layer/0/attention/self/{query,key,value}/{kernel,bias}
    encoder/layer/0/attention/output/{dense/{kernel,bias},LayerNorm/{scale,bias}}
    encoder/layer/0/intermediate/dense/{kernel,bias}
    encoder/layer/0/output/{dense/{kernel,bias},LayerNorm/{scale,bias}}
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

Hidden = Float[Array, "texts length hidden"]
Visible = Bool[Array, "texts #length length"]  # targets, then sources

# Of the feed-forward networks, as RoBERTa's config.json names them.
ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


@dataclasses.dataclass(frozen=True)
class RobertaSizes:
    """The numbers that make one RoBERTa, with the names and defaults of its config.json.

    Attributes:
        vocab_size: rows of the token embedding.
        hidden_size: width of a token.
        num_hidden_layers: number of layers.
        num_attention_heads: of each layer; divides `hidden_size`.
        intermediate_size: hidden width of the feed-forward networks.
        hidden_act: their activation, a key of `ACTIVATIONS`.
        hidden_dropout_prob: dropout rate of the embeddings, and of each attention and feed-forward network's output.
        attention_probs_dropout_prob: dropout rate of the attention weights.
        max_position_embeddings: rows of the position embedding, of which `max_length` number tokens.
        type_vocab_size: rows of the token type embedding; RoBERTa uses the first only.
        layer_norm_eps: epsilon of the layer norms.
        initializer_range: standard deviation of fresh embeddings and kernels.
        pad_token_id: the pad's id and position.

    Raises:
        ValueError: the heads do not divide the width, or an unsupported activation.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 1

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"a RoBERTa's hidden_size={self.hidden_size} must be a multiple of its "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"a RoBERTa's hidden_act is {self.hidden_act!r}; it must be one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def max_length(self) -> int:
        """Tokens of the longest text: positions start after the pad's, whose own row serves pads."""
        return self.max_position_embeddings - self.pad_token_id - 1


class Roberta(nn.Module):
    """The encoder up to its last hidden states: no pooler, no output layer.

    Attributes:
        sizes: of the network.
        remat: recompute each layer's activations in the backward pass instead of keeping them.
        dtype: of computation; norm statistics and softmax are float32 whatever it is.
        param_dtype: of the parameters.
    """

    sizes: RobertaSizes
    remat: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "texts length"], mask: Bool[Array, "texts length"], *, train: bool = False
    ) -> Hidden:
        """Returns the last hidden states.

        Args:
            input_ids: token ids with <s> and </s>.
            mask: True for real tokens. The ids at the others change nothing, and the hidden states there mean nothing.
            train: dropout; needs the random stream "dropout".

        Raises:
            ValueError: texts longer than the position embedding.
        """
        length, longest = input_ids.shape[1], self.sizes.max_length
        if length > longest:
            raise ValueError(f"texts of {length} tokens, but this RoBERTa has positions for {longest}")
        common = (self.sizes, self.dtype, self.param_dtype)
        positions = position_ids(mask, self.sizes.pad_token_id)
        x = Embeddings(*common, name="embeddings")(input_ids, positions, train)
        return Encoder(*common, remat=self.remat, name="encoder")(x, mask[:, None], train)


def position_ids(mask: Bool[Array, "texts length"], pad_id: int) -> Int[Array, "texts length"]:
    """Positions as RoBERTa counts them: real tokens from `pad_id` + 1 on, pads all at `pad_id`."""
    mask = mask.astype(jnp.int32)
    return jnp.cumsum(mask, axis=1) * mask + pad_id


class Part(nn.Module):
    """Base of the parts of RoBERTa, with the attributes of `Roberta`."""

    sizes: RobertaSizes
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def part(self, kind: type[Part], name: str, **others: bool) -> Part:
        """A part of this part."""
        return kind(self.sizes, self.dtype, self.param_dtype, name=name, **others)


class Embeddings(Part):
    """Sum of the embeddings of tokens, token types and positions; layer norm; dropout."""

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "texts length"], positions: Int[Array, "texts length"], train: bool
    ) -> Hidden:
        """Returns the first layer's input."""
        x = _embed(self, self.sizes.vocab_size, "word_embeddings")(input_ids)
        x = x + _embed(self, self.sizes.type_vocab_size, "token_type_embeddings")(jnp.zeros_like(input_ids))
        x = x + _embed(self, self.sizes.max_position_embeddings, "position_embeddings")(positions)
        return _dropout(self)(_norm(self)(x), deterministic=not train)


class Encoder(Part):
    """All layers, under `layer/`."""

    remat: bool = False

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns the last layer's output; see `Layer`."""
        return self.part(Layers, "layer", remat=self.remat)(x, visible, train)


class Layers(Part):
    """Layers in a row, under their numbers."""

    remat: bool = False

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns the last layer's output; see `Layer`."""
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer  # 3 is `train`, after the module
        for index in range(self.sizes.num_hidden_layers):
            x = self.part(layer, str(index))(x, visible, train)
        return x


class Layer(Part):
    """Self-attention and a feed-forward network, each followed by dropout, a residual connection and a layer norm."""

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns new hidden states.

        Args:
            x: hidden states.
            visible: True for the sources that a target attends to; RoBERTa's own are the real tokens.
            train: dropout; needs the random stream "dropout".
        """
        x = self.part(Attention, "attention")(x, visible, train)
        return self.part(Output, "output")(self.part(Intermediate, "intermediate")(x), x, train)


class Attention(Part):
    """Self-attention, and what follows it."""

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns new hidden states; see `Layer`."""
        return self.part(Output, "output")(self.part(SelfAttention, "self")(x, visible, train), x, train)


class SelfAttention(Part):
    """Scaled dot-product attention (Vaswani et al., 2017) in several heads, softmax in float32."""

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns the mixed values, heads joined; see `Layer`."""
        width, heads = self.sizes.hidden_size, self.sizes.num_attention_heads
        query, key, value = (
            _dense(self, width, name)(x).reshape(*x.shape[:2], heads, width // heads)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query / jnp.sqrt(width // heads).astype(self.dtype), key)
        scores = jnp.where(visible[:, None], scores, jnp.finfo(self.dtype).min)
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        rate = self.sizes.attention_probs_dropout_prob
        if train and rate:  # one mask for all texts and heads, as in linen's attention
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, weights.shape[2:])
            weights = weights * (kept.astype(self.dtype) / jnp.asarray(1 - rate, self.dtype))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)


class Intermediate(Part):
    """First dense layer of the feed-forward network, and the activation."""

    @nn.compact
    def __call__(self, x: Hidden) -> Float[Array, "texts length intermediate"]:
        """Applies to each token."""
        return ACTIVATIONS[self.sizes.hidden_act](_dense(self, self.sizes.intermediate_size, "dense")(x))


class Output(Part):
    """A dense layer back to the hidden width, dropout, residual connection and layer norm."""

    @nn.compact
    def __call__(self, x: Float[Array, "texts length inputs"], residual: Hidden, train: bool) -> Hidden:
        """Returns the norm of `residual` plus the projected `x`."""
        x = _dense(self, self.sizes.hidden_size, "dense")(x)
        return _norm(self)(_dropout(self)(x, deterministic=not train) + residual)


def _embed(part: Part, rows: int, name: str) -> nn.Embed:
    init = nn.initializers.normal(part.sizes.initializer_range)
    return nn.Embed(rows, part.sizes.hidden_size, part.dtype, part.param_dtype, init, name=name)


def _dense(part: Part, features: int, name: str) -> nn.Dense:
    init = nn.initializers.normal(part.sizes.initializer_range)
    return nn.Dense(features, kernel_init=init, dtype=part.dtype, param_dtype=part.param_dtype, name=name)


def _norm(part: Part) -> nn.LayerNorm:
    return nn.LayerNorm(part.sizes.layer_norm_eps, part.dtype, part.param_dtype, name="LayerNorm")


def _dropout(part: Part) -> nn.Dropout:
    return nn.Dropout(part.sizes.hidden_dropout_prob, name="dropout")

"""RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692), BERT (Devlin et al., 2018) with better pretraining.

Post-norm transformer layers on top of token, position and type embeddings. The parameter paths are those of
`FlaxRobertaModel` in transformers without its pooler, so its checkpoints load unchanged:

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

from caption_jax.models.layers import Dense

Hidden = Float[Array, "texts length hidden"]
Visible = Bool[Array, "#texts #length length"]  # [texts, targets, sources]

# Activations of the feed-forward networks, by their name in config.json.
ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


@dataclasses.dataclass(frozen=True)
class RobertaSettings:
    """Hyperparameters of a RoBERTa model, with the names and defaults of its config.json.

    Attributes:
        vocab_size: number of token embeddings.
        hidden_size: width of the hidden states.
        num_hidden_layers: number of layers.
        num_attention_heads: attention heads per layer; must divide `hidden_size`.
        intermediate_size: hidden width of the feed-forward networks.
        hidden_act: activation of the feed-forward networks, a key of `ACTIVATIONS`.
        hidden_dropout_prob: dropout rate of the embeddings and of the output of each attention and feed-forward block.
        attention_probs_dropout_prob: dropout rate of the attention weights.
        max_position_embeddings: number of position embeddings; tokens use `max_length` of them.
        type_vocab_size: number of token type embeddings; RoBERTa uses only the first one.
        layer_norm_eps: epsilon of the layer norms.
        initializer_range: standard deviation of the initial embeddings and kernels.
        pad_token_id: token id and position id of padding.

    Raises:
        ValueError: `hidden_size` is not a multiple of `num_attention_heads`, or `hidden_act` is unsupported.
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
                f"RoBERTa's hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"RoBERTa's hidden_act is {self.hidden_act!r}; it must be one of {', '.join(ACTIVATIONS)}")

    @property
    def max_length(self) -> int:
        """Maximum text length in tokens. The position ids of tokens start at `pad_token_id` + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1


class Roberta(nn.Module):
    """The encoder up to its last hidden states, without a pooler or an output layer.

    Attributes:
        settings: hyperparameters of the network.
        remat: whether to recompute each layer's activations in the backward pass instead of storing them.
        dtype: computation dtype; norm statistics and softmax are always float32.
        param_dtype: dtype of the parameters.
    """

    settings: RobertaSettings
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
            mask: True for tokens, False for padding. Hidden states of padding are undefined.
            train: enables dropout; requires the RNG stream "dropout".

        Raises:
            ValueError: the texts are longer than `settings.max_length`.
        """
        length, max_length = input_ids.shape[1], self.settings.max_length
        if length > max_length:
            raise ValueError(f"got texts of {length} tokens, but this RoBERTa has positions for {max_length}")
        attributes = (self.settings, self.dtype, self.param_dtype)
        positions = make_position_ids(mask, self.settings.pad_token_id)
        x = Embeddings(*attributes, name="embeddings")(input_ids, positions, train)
        return Encoder(*attributes, remat=self.remat, name="encoder")(x, mask[:, None], train)


def make_position_ids(mask: Bool[Array, "texts length"], pad_id: int) -> Int[Array, "texts length"]:
    """Returns RoBERTa's position ids: `pad_id` for padding, and consecutive ids from `pad_id` + 1 for tokens."""
    mask = mask.astype(jnp.int32)
    return jnp.cumsum(mask, axis=1) * mask + pad_id


class RobertaModule(nn.Module):
    """Base class of RoBERTa's submodules, with the attributes of `Roberta`."""

    settings: RobertaSettings
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def make_submodule(self, cls: type[RobertaModule], name: str, **kwargs: bool) -> RobertaModule:
        """Creates a submodule with the same settings and dtypes."""
        return cls(self.settings, self.dtype, self.param_dtype, name=name, **kwargs)


class Embeddings(RobertaModule):
    """Sum of the token, token type and position embeddings, followed by layer norm and dropout."""

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "texts length"], positions: Int[Array, "texts length"], train: bool
    ) -> Hidden:
        """Returns the input of the first layer."""
        x = _make_embed(self, self.settings.vocab_size, "word_embeddings")(input_ids)
        x = x + _make_embed(self, self.settings.type_vocab_size, "token_type_embeddings")(jnp.zeros_like(input_ids))
        x = x + _make_embed(self, self.settings.max_position_embeddings, "position_embeddings")(positions)
        return _make_dropout(self)(_make_norm(self)(x), deterministic=not train)


class Encoder(RobertaModule):
    """Stack of layers, with parameters under `layer/`."""

    remat: bool = False

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns the output of the last layer; see `Layer`."""
        return self.make_submodule(Layers, "layer", remat=self.remat)(x, visible, train)


class Layers(RobertaModule):
    """Sequence of layers, named by their indices."""

    remat: bool = False

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns the output of the last layer; see `Layer`."""
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer  # 3: `train` (0: the module)
        for index in range(self.settings.num_hidden_layers):
            x = self.make_submodule(layer, str(index))(x, visible, train)
        return x


class Layer(RobertaModule):
    """Self-attention and a feed-forward network, each followed by dropout, a residual connection and a layer norm."""

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns new hidden states.

        Args:
            x: hidden states.
            visible: True where a target attends to a source; RoBERTa attends to all tokens except padding.
            train: enables dropout; requires the RNG stream "dropout".
        """
        x = self.make_submodule(Attention, "attention")(x, visible, train)
        return self.make_submodule(Output, "output")(self.make_submodule(Intermediate, "intermediate")(x), x, train)


class Attention(RobertaModule):
    """Self-attention and its output block."""

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns new hidden states; see `Layer`."""
        output = self.make_submodule(SelfAttention, "self")(x, visible, train)
        return self.make_submodule(Output, "output")(output, x, train)


class SelfAttention(RobertaModule):
    """Multi-head scaled dot-product attention (Vaswani et al., 2017), with the softmax in float32."""

    @nn.compact
    def __call__(self, x: Hidden, visible: Visible, train: bool) -> Hidden:
        """Returns the attention output with heads concatenated; see `Layer`."""
        width, heads = self.settings.hidden_size, self.settings.num_attention_heads
        query, key, value = (
            _make_dense(self, width, name)(x).reshape(*x.shape[:2], heads, width // heads)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query / jnp.sqrt(width // heads).astype(self.dtype), key)
        scores = jnp.where(visible[:, None], scores, jnp.finfo(self.dtype).min)
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        rate = self.settings.attention_probs_dropout_prob
        if train and rate:  # one mask for all texts and heads, as in linen's attention
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, weights.shape[2:])
            weights = weights * (keep.astype(self.dtype) / jnp.asarray(1 - rate, self.dtype))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)


class Intermediate(RobertaModule):
    """First dense layer of the feed-forward network, followed by the activation."""

    @nn.compact
    def __call__(self, x: Hidden) -> Float[Array, "texts length intermediate"]:
        """Applies the layer to each token."""
        return ACTIVATIONS[self.settings.hidden_act](_make_dense(self, self.settings.intermediate_size, "dense")(x))


class Output(RobertaModule):
    """Projection to the hidden width, followed by dropout, a residual connection and layer norm."""

    @nn.compact
    def __call__(self, x: Float[Array, "texts length inputs"], residual: Hidden, train: bool) -> Hidden:
        """Returns the layer norm of `residual` plus the projection of `x`."""
        x = _make_dense(self, self.settings.hidden_size, "dense")(x)
        return _make_norm(self)(_make_dropout(self)(x, deterministic=not train) + residual)


def _make_embed(module: RobertaModule, num_embeddings: int, name: str) -> nn.Embed:
    """Returns embeddings with the dtype of the parameters, in which their gradients are then summed as well."""
    init, dtype = nn.initializers.normal(module.settings.initializer_range), module.param_dtype
    return nn.Embed(num_embeddings, module.settings.hidden_size, dtype, dtype, init, name=name)


def _make_dense(module: RobertaModule, features: int, name: str) -> Dense:
    init = nn.initializers.normal(module.settings.initializer_range)
    return Dense(features, kernel_init=init, dtype=module.dtype, param_dtype=module.param_dtype, name=name)


def _make_norm(module: RobertaModule) -> nn.LayerNorm:
    return nn.LayerNorm(module.settings.layer_norm_eps, module.dtype, module.param_dtype, name="LayerNorm")


def _make_dropout(module: RobertaModule) -> nn.Dropout:
    return nn.Dropout(module.settings.hidden_dropout_prob, name="dropout")

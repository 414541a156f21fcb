"""Unlikelihood training against repetition (Welleck et al. 2020, https://arxiv.org/abs/1908.04319).

An addition to the loss that a config asks for by name; nothing else in the package knows of it.

    config.objective.terms = {
        "unlikelihood": {"name": "caption_jax.objectives.unlikelihood:Unlikelihood", "weight": 0.5}
    }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.errors import ConfigError
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.objectives.forward_pass import ForwardPass

_CHUNK = 512  # tokens whose logits exist at a time where the batch is packed
_LEAST = 1e-5  # of 1 - p, as in the authors' code: a candidate that is all but certain has no gradient


@dataclass(frozen=True)
class Unlikelihood(Objective):
    """Makes a token less likely where the caption already has it: the paper's token-level objective.

    For each target x_t it is the sum of -log(1 - p(c | x_<t, image)) over the candidates c, the distinct tokens among
    x_1 .. x_(t-1) without x_t itself; its mean is over all targets. <s> is no candidate, as it is never a target.

    Reported: `loss`, this mean in nats, and `repetition_probability`, the probability of all candidates together, as a
    mean over targets.

    Attributes:
        weight: of the loss, the paper's alpha.
    """

    weight: float = 1.0

    def __post_init__(self):
        if not self.weight > 0:
            raise ConfigError(f"the weight of an unlikelihood term is {self.weight}; it has to be above 0")

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """The loss, from the log-probability of each token of a caption at each position of it.

        These few logits are products of the decoder's states with rows of the output layer; of the vocabulary's others
        no more is needed than the sum of their exponentials.
        """
        del constants, key
        targets, weights = batch["tokens"][..., 1:], forward.to_captions(forward.weights)
        table, bias = model.output_layer()
        states = forward.to_captions(forward.decoded.states)
        logits = jnp.einsum("bktd,bkcd->bktc", states, table[targets], preferred_element_type=jnp.float32)
        logits += bias[targets][..., None, :]
        normaliser = forward.to_captions(_log_normaliser(forward, table, bias))
        counted = candidates(targets) & (weights[..., None] > 0)
        probabilities = jnp.exp(jnp.where(counted, logits - normaliser[..., None], -jnp.inf))
        loss = -jnp.log(jnp.maximum(1 - probabilities, _LEAST))
        return ObjectiveOutput(
            losses={"loss": Ratio(loss.sum(), weights.sum())},
            metrics={"repetition_probability": Ratio(probabilities.sum(), weights.sum())},
        )


def candidates(targets: Int[Array, "*captions targets"]) -> Bool[Array, "*captions targets candidates"]:
    """Which positions of a caption hold candidates for the target at each position: distinct tokens before it."""
    length = targets.shape[-1]
    earlier = jnp.tril(jnp.ones((length, length), bool), -1)
    same = targets[..., :, None] == targets[..., None, :]
    first = ~(same & earlier).any(-1)  # of the occurrences of a token in the caption
    return earlier & ~same & first[..., None, :]


def _log_normaliser(
    forward: ForwardPass, table: Float[Array, "vocabulary width"], bias: Float[Array, " vocabulary"]
) -> Float[Array, "*tokens"]:
    """The logarithm of the sum of all tokens' exponential logits, of tokens.

    Its gradient computes the exponentials again instead of keeping an array of the vocabulary's size. Where the batch
    is packed, its logits exist a chunk at a time.
    """
    if not forward.segments.is_packed:
        return jax.checkpoint(lambda logits: jax.nn.logsumexp(logits, axis=-1))(forward.decoded.logits)

    @jax.checkpoint
    def of_chunk(states: Float[Array, "*groups chunk width"]) -> Float[Array, "*groups chunk"]:
        logits = jnp.einsum("...d,vd->...v", states, table, preferred_element_type=jnp.float32) + bias
        return jax.nn.logsumexp(logits, axis=-1)

    states = forward.decoded.states
    *groups, tokens, width = states.shape
    chunks = -(-tokens // _CHUNK)
    padded = jnp.pad(states, [(0, 0)] * len(groups) + [(0, chunks * _CHUNK - tokens), (0, 0)])
    in_chunks = jnp.moveaxis(padded.reshape(*groups, chunks, _CHUNK, width), -3, 0)
    normaliser = jnp.moveaxis(jax.lax.map(of_chunk, in_chunks), 0, -2)
    return normaliser.reshape(*groups, -1)[..., :tokens]

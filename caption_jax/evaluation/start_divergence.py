"""How far a model has moved from the weights it started from, which training on rewards should not do without gain.

To enable the metric in a run with `config.init_from`:

    config.evaluators = {"start": {"name": "caption_jax.evaluation.start_divergence:StartDivergence"}}
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float

from caption_jax.errors import ConfigError, UserError
from caption_jax.evaluation.evaluator import EvalBatch, Evaluator, Result, SplitOutputs
from input_pipeline.special_tokens import BOS, PAD

if TYPE_CHECKING:  # the config imports this module in every mode, so the import must be fast
    from caption_jax.runs.description import RunDescription
    from caption_jax.runs.experiment import Experiment

PyTree = Any

_DIVERGENCE, _TOKENS = "divergence", "tokens"


@dataclasses.dataclass(frozen=True)
class _Start:
    description: RunDescription
    variables: PyTree


@dataclasses.dataclass(frozen=True)
class StartDivergence(Evaluator):
    """Computes `kl`, the Kullback-Leibler divergence of the model from its start in nats per token.

    The start is the model with the weights of `config.init_from`, as at step 0 of the run. Both models predict every
    token of the captions that the evaluated model has decoded, and the divergence of their distributions over the whole
    vocabulary, KL(model || start), is averaged over these tokens. It is 0 at the start.
    """

    def metric_names(self) -> tuple[str, ...]:
        """Returns the name of the divergence."""
        return ("kl",)

    def prepare(self, experiment: Experiment) -> _Start | None:
        """Reads the weights of the start; None, with a warning, if they are no longer there.

        Raises:
            ConfigError: the run does not start from the weights of another one.
        """
        from caption_jax.runs.initial_variables import initial_variables

        if not experiment.spec.init_from:
            raise ConfigError(
                "StartDivergence compares a model with the one it started from: set config.init_from, or remove it "
                "from config.evaluators"
            )
        try:
            return _Start(experiment.description, initial_variables(experiment))
        except (UserError, OSError) as error:
            logging.warning("the divergence from config.init_from is not computed: %s", error)
            return None

    def constants(self, state: _Start | None) -> PyTree:
        """Returns the variables of the start."""
        return () if state is None else state.variables

    def outputs(self, state: _Start | None, batch: EvalBatch) -> dict[str, Float[Array, " batch"]]:
        """Returns the sum of the divergences over the tokens of each caption, and their number."""
        from caption_jax.inference.captioning import encode_batch

        if state is None:
            return {}
        targets = batch.decoded.tokens
        inputs = jnp.concatenate([jnp.full_like(targets[:, :1], BOS), targets[:, :-1]], axis=-1)[:, None]
        start_features = encode_batch(batch.model, batch.constants, batch.batch, state.description)
        pairs = (batch.variables, batch.features), (batch.constants, start_features)
        now, start = (
            jax.nn.log_softmax(batch.model.apply(variables, inputs, features, method="decode").logits[:, 0])
            for variables, features in pairs
        )
        divergence = (jnp.exp(now) * (now - start)).sum(-1)
        is_token = targets != PAD
        return {_DIVERGENCE: (divergence * is_token).sum(-1), _TOKENS: is_token.sum(-1).astype(jnp.float32)}

    def summarise(self, state: _Start | None, variables: PyTree, outputs: SplitOutputs) -> Result:
        """Averages the divergence over the tokens of all captions; no metric if the start could not be read."""
        if state is None:
            return Result()
        sums = {name: float(sum(rows.values())) for name, rows in outputs.arrays.items()}
        return Result({"kl": sums.get(_DIVERGENCE, 0.0) / max(sums.get(_TOKENS, 0.0), 1.0)})

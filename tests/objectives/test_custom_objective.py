"""The example objective from docs/extending.md."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import get_config

from caption_jax.objectives.total_objective import make_objectives
from caption_jax.specs import RunSpec


@pytest.mark.usefixtures("example_files")
def test_loss_is_the_negative_entropy_of_unmasked_tokens():
    config = get_config().unlock()
    config.objective.terms = {"confidence": {"name": "custom.confidence_penalty:ConfidencePenalty", "weight": 0.5}}
    objective = make_objectives(RunSpec.from_config(config).objective, joint_embedding=False)["confidence"]
    assert objective.weight == 0.5

    embedding = np.zeros((8, 3), np.float32)
    embedding[0] = 50.0
    # The state of ones predicts token 0 with certainty; the state of zeros makes all eight tokens equally likely.
    states = jnp.stack([jnp.ones((2, 3)), jnp.zeros((2, 3))], axis=1)[None]
    forward = SimpleNamespace(decoded=SimpleNamespace(states=states), weights=jnp.array([[[1.0, 1.0], [1.0, 0.0]]]))
    model = SimpleNamespace(output_layer=lambda: (embedding, np.zeros(8, np.float32)))
    loss = objective(model, forward, {}, {}, jax.random.key(0)).losses["loss"]
    assert loss.count == 3
    assert float(loss.mean()) == pytest.approx(-np.log(8) / 3, abs=1e-6)

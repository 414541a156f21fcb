"""The objective that docs/extending.md shows, as a user would copy it."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import get_config

from caption_jax.objectives.total_objective import objectives_of
from caption_jax.specs import RunSpec


@pytest.mark.usefixtures("own_files")
def test_its_loss_is_the_negative_entropy_of_tokens_that_count():
    config = get_config().unlock()
    config.objective.terms = {"confidence": {"name": "own.confidence_penalty:ConfidencePenalty", "weight": 0.5}}
    objective = objectives_of(RunSpec.from_config(config).objective, joint_embedding=False)["confidence"]
    assert objective.weight == 0.5

    table = np.zeros((8, 3), np.float32)
    table[0] = 50.0  # of eight tokens; states of ones make the first one certain, of zeros all alike
    states = jnp.stack([jnp.ones((2, 3)), jnp.zeros((2, 3))], axis=1)[None]
    forward = SimpleNamespace(decoded=SimpleNamespace(states=states), weights=jnp.array([[[1.0, 1.0], [1.0, 0.0]]]))
    model = SimpleNamespace(output_layer=lambda: (table, np.zeros(8, np.float32)))
    found = objective(model, forward, {}, {}, jax.random.key(0)).losses["loss"]
    assert found.count == 3
    assert float(found.mean()) == pytest.approx(-np.log(8) / 3, abs=1e-6)

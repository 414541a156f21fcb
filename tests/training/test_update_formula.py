"""Updates compared with the documented formulas of the optimizers, implemented in NumPy in double precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from caption_jax.parameters.paths import flatten, unflatten
from caption_jax.specs import OptimizerSpec
from caption_jax.specs.learning_spec import OPTIMIZERS
from caption_jax.training.optimizer import make_optimizer

SHAPES = {
    "encoder/stem/kernel": (3, 4),
    "encoder/norm/scale": (4,),
    "encoder/head/kernel": (160, 130),  # large enough to be factored by Adafactor
    "encoder/head/bias": (5,),
    "decoder/embedding": (7, 6),
    "decoder/out/kernel": (5, 6),
    "decoder/out/bias": (6,),
}
STAGED = (
    (r"encoder/(stem|norm)/.*", {"lr": 0}),
    (r"encoder/head/.*", {"lr": 0.1, "from_step": 3}),
    (r"decoder/out/.*", {"decay": 0.5, "from_step": 3}),
    (r"decoder/embedding", {"lr": 2.0}),
)
# path prefix -> (lr, decay, from_step)
SETTINGS = {
    "encoder/stem": (0, 1, 0),
    "encoder/norm": (0, 1, 0),
    "encoder/head": (0.1, 1, 3),
    "decoder/out": (1, 0.5, 3),
    "decoder/embedding": (2, 1, 0),
}
STEPS, WARMUP, PEAK, CLIP, DECAY, B1, B2 = 7, 4, 0.01, 0.5, 0.3, 0.9, 0.98


class ReferenceOptimizer:
    """Computes the update directions of one parameter from its successive gradients."""

    def __init__(self, name: str):
        self.name, self.updates = name, 0
        self.first_moment = self.second_moment = self.row_means = self.column_means = 0.0

    def __call__(self, gradient: np.ndarray) -> np.ndarray:
        self.updates += 1
        name = "adam" if self.name == "adamw" else self.name
        return getattr(self, name)(gradient, self.updates)

    def adam(self, gradient: np.ndarray, t: int) -> np.ndarray:
        self.first_moment = B1 * self.first_moment + (1 - B1) * gradient
        self.second_moment = B2 * self.second_moment + (1 - B2) * gradient**2
        return self.first_moment / (1 - B1**t) / (np.sqrt(self.second_moment / (1 - B2**t)) + 1e-8)

    def lion(self, gradient: np.ndarray, t: int) -> np.ndarray:
        direction = np.sign(B1 * self.first_moment + (1 - B1) * gradient)
        self.first_moment = B2 * self.first_moment + (1 - B2) * gradient
        return direction

    def sgd(self, gradient: np.ndarray, t: int) -> np.ndarray:
        self.first_moment = B1 * self.first_moment + gradient
        return self.first_moment

    def adafactor(self, gradient: np.ndarray, t: int) -> np.ndarray:
        decay, square = 1 - t**-0.8, gradient**2 + 1e-30
        if gradient.ndim == 2 and min(gradient.shape) >= 128:
            self.row_means = decay * self.row_means + (1 - decay) * square.mean(1)
            self.column_means = decay * self.column_means + (1 - decay) * square.mean(0)
            second = np.outer(self.row_means, self.column_means) / self.row_means.mean()
        else:
            second = self.second_moment = decay * self.second_moment + (1 - decay) * square
        direction = gradient / np.sqrt(second)
        return direction / max(1, np.sqrt(np.mean(direction**2)))


def compute_expected_updates(name: str, params: dict, gradients: list[dict], clip_norm: float) -> list[dict]:
    """Returns the updates of each step, keyed by path."""
    params = {path: value.astype(np.float64) for path, value in params.items()}
    settings = {path: SETTINGS[next(p for p in SETTINGS if path.startswith(p))] for path in params}
    optimizers, result = {path: ReferenceOptimizer(name) for path in params}, []
    for step in range(STEPS):
        active = [path for path, (lr, _, start) in settings.items() if lr and step >= start]
        norm = np.sqrt(sum((gradients[step][path].astype(np.float64) ** 2).sum() for path in active))
        factor = clip_norm / norm if clip_norm and norm > clip_norm else 1.0
        updates = {path: np.zeros_like(value) for path, value in params.items()}
        for path in active:
            lr, decay, _ = settings[path]
            direction = optimizers[path](factor * gradients[step][path].astype(np.float64))
            if name != "adam" and path.endswith(("kernel", "embedding")):
                direction = direction + DECAY * decay * params[path]
            updates[path] = -lr * PEAK * min((step + 1) / WARMUP, 1) * direction
            params[path] = params[path] + updates[path]
        result.append(updates)
    return result


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [0.0, CLIP])
def test_updates_match_the_formula(name, clip_norm):
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    gradients = [
        {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()} for _ in range(STEPS)
    ]
    spec = OptimizerSpec(
        **{"name": name, "learning_rate": PEAK, "schedule": "constant", "warmup_steps": WARMUP, "rules": STAGED},
        **{"b1": B1, "b2": B2, "weight_decay": DECAY, "clip_norm": clip_norm},
    )
    optimizer, _ = make_optimizer(spec, unflatten(params), 100)
    current_params = jax.tree.map(jnp.asarray, unflatten(params))
    state, update = optimizer.init(current_params), jax.jit(optimizer.update)
    for step, expected in enumerate(compute_expected_updates(name, params, gradients, clip_norm)):
        updates, state = update(unflatten(gradients[step]), state, current_params)
        current_params = optax.apply_updates(current_params, updates)
        for path, value in flatten(updates).items():
            largest = np.abs(expected[path]).max()
            np.testing.assert_allclose(value, expected[path], rtol=1e-6, atol=1e-6 * largest, err_msg=f"{step} {path}")

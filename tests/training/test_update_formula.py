"""Updates against the documented formulas of the optimizer, implemented in NumPy in double precision."""

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
#        path prefix -> (lr, decay, from_step)
SETTINGS = {
    "encoder/stem": (0, 1, 0),
    "encoder/norm": (0, 1, 0),
    "encoder/head": (0.1, 1, 3),
    "decoder/out": (1, 0.5, 3),
    "decoder/embedding": (2, 1, 0),
}
STEPS, WARMUP, PEAK, CLIP, DECAY, B1, B2 = 7, 4, 0.01, 0.5, 0.3, 0.9, 0.98


class Method:
    """The direction of one parameter under the named method, from its successive gradients."""

    def __init__(self, name: str):
        self.name, self.updates = name, 0
        self.first = self.second = self.rows = self.columns = 0.0

    def __call__(self, gradient: np.ndarray) -> np.ndarray:
        self.updates += 1
        name = "adam" if self.name == "adamw" else self.name
        return getattr(self, name)(gradient, self.updates)

    def adam(self, gradient: np.ndarray, t: int) -> np.ndarray:
        self.first = B1 * self.first + (1 - B1) * gradient
        self.second = B2 * self.second + (1 - B2) * gradient**2
        return self.first / (1 - B1**t) / (np.sqrt(self.second / (1 - B2**t)) + 1e-8)

    def lion(self, gradient: np.ndarray, t: int) -> np.ndarray:
        direction = np.sign(B1 * self.first + (1 - B1) * gradient)
        self.first = B2 * self.first + (1 - B2) * gradient
        return direction

    def sgd(self, gradient: np.ndarray, t: int) -> np.ndarray:
        self.first = B1 * self.first + gradient
        return self.first

    def adafactor(self, gradient: np.ndarray, t: int) -> np.ndarray:
        decay, square = 1 - t**-0.8, gradient**2 + 1e-30
        if gradient.ndim == 2 and min(gradient.shape) >= 128:
            self.rows = decay * self.rows + (1 - decay) * square.mean(1)
            self.columns = decay * self.columns + (1 - decay) * square.mean(0)
            second = np.outer(self.rows, self.columns) / self.rows.mean()
        else:
            second = self.second = decay * self.second + (1 - decay) * square
        direction = gradient / np.sqrt(second)
        return direction / max(1, np.sqrt(np.mean(direction**2)))


def expected_updates(name: str, params: dict, gradients: list[dict], clip_norm: float) -> list[dict]:
    """Returns the updates of each step by path, from the gradients of every parameter."""
    params = {path: value.astype(np.float64) for path, value in params.items()}
    settings = {path: SETTINGS[next(p for p in SETTINGS if path.startswith(p))] for path in params}
    methods, result = {path: Method(name) for path in params}, []
    for step in range(STEPS):
        active = [path for path, (lr, _, start) in settings.items() if lr and step >= start]
        norm = np.sqrt(sum((gradients[step][path].astype(np.float64) ** 2).sum() for path in active))
        factor = clip_norm / norm if clip_norm and norm > clip_norm else 1.0
        updates = {path: np.zeros_like(value) for path, value in params.items()}
        for path in active:
            lr, decay, _ = settings[path]
            direction = methods[path](factor * gradients[step][path].astype(np.float64))
            if name != "adam" and path.endswith(("kernel", "embedding")):
                direction = direction + DECAY * decay * params[path]
            updates[path] = -lr * PEAK * min((step + 1) / WARMUP, 1) * direction
            params[path] = params[path] + updates[path]
        result.append(updates)
    return result


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [0.0, CLIP])
def test_updates_follow_the_formula(name, clip_norm):
    random = np.random.default_rng(0)
    params = {path: random.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    gradients = [
        {path: random.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()} for _ in range(STEPS)
    ]
    spec = OptimizerSpec(
        **{"name": name, "learning_rate": PEAK, "schedule": "constant", "warmup_steps": WARMUP, "rules": STAGED},
        **{"b1": B1, "b2": B2, "weight_decay": DECAY, "clip_norm": clip_norm},
    )
    optimizer, _ = make_optimizer(spec, unflatten(params), 100)
    now = jax.tree.map(jnp.asarray, unflatten(params))
    state, update = optimizer.init(now), jax.jit(optimizer.update)
    for step, expected in enumerate(expected_updates(name, params, gradients, clip_norm)):
        updates, state = update(unflatten(gradients[step]), state, now)
        now = optax.apply_updates(now, updates)
        for path, value in flatten(updates).items():
            largest = np.abs(expected[path]).max()
            np.testing.assert_allclose(value, expected[path], rtol=1e-6, atol=1e-6 * largest, err_msg=f"{step} {path}")

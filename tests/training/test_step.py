"""One update: its dependencies, its results and what it must not change."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_run import shrink

from caption_jax.config import default_config
from caption_jax.models.build import build_model
from caption_jax.objectives.total_objective import make_objectives
from caption_jax.parameters.freezing import frozen_norms, phases
from caption_jax.parameters.paths import flatten
from caption_jax.parameters.sharding import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    put_batch,
    replicated,
    shardings_like,
)
from caption_jax.specs import ModelSpec, RunSpec, build_spec
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.state import TrainState, create_state
from caption_jax.training.step import TrainStep
from input_pipeline.images import Preprocessing
from input_pipeline.packing import pack_captions

VOCABULARY, LENGTH, SIDE, ROWS = 24, 8, 32, 16
PREPROCESSING = Preprocessing(SIDE, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
FROZEN_BACKBONE = ((r"image_encoder/backbone/.*", {"lr": 0.0}), (r"(?!image_encoder/backbone/).*", {"lr": 1.0}))
# Fast compilation, because the tests run only a few steps.
QUICK_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


@dataclasses.dataclass(eq=False)
class Setup:
    """The pure functions of a run on one mesh."""

    config: ConfigDict
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def start(self) -> TrainState:
        optimizer, _ = self.optimizer
        state = create_state(variables(), optimizer, averaged=self.config.optimizer.ema > 0)
        return jax.device_put(state, self.shardings)

    @functools.cached_property
    def optimizer(self):
        return make_optimizer(self.config.optimizer, variables()["params"], 20)

    @functools.cached_property
    def shardings(self):
        params = variables()["params"]
        state = jax.eval_shape(lambda: create_state(variables(), self.optimizer[0], self.config.optimizer.ema > 0))
        owners = parameter_shardings(params, self.config.mesh.rules, self.mesh)
        return shardings_like(state, params, owners, self.mesh)

    @functools.cache  # noqa: B019, keeps a few trainers of one module alive, and saves compiling their steps again
    def step(self, frozen: frozenset[str]) -> Callable:
        model = model_of(self.config, frozen_norms(frozen))
        spec = RunSpec.from_config(self.config)
        objectives = make_objectives(spec.objective, joint_embedding=False)
        update = TrainStep(model, self.optimizer[0], PREPROCESSING, spec, frozen, objectives)
        return jax.jit(
            update,
            in_shardings=(self.shardings, batch_sharding(self.mesh)),
            out_shardings=(self.shardings, replicated(self.mesh)),
            compiler_options=QUICK_COMPILATION,
        )

    def run(self, state: TrainState, batch: dict, frozen: frozenset[str] = frozenset()):
        return self.step(frozen)(state, put_batch(batch, self.mesh))


def make_config(**changes) -> ConfigDict:
    config = default_config()
    shrink(config)
    config.dtype = "float32"
    config.optimizer.warmup_steps = 3
    config.model.memory_dropout = config.model.decoder.dropout = 0.0
    config.update_from_flattened_dict(changes)
    return config


def random_config(**changes) -> ConfigDict:
    """Config with all random operations, and batch norms trained over groups of two images."""
    return make_config(
        **{
            "model.memory_dropout": 0.2,
            "model.decoder.dropout": 0.2,
            "model.encoder.drop_path": 0.3,
            "model.encoder.norm_group_size": 2,
            "model.encoder.norm_momentum": 0.9,
            "augment.flip": True,
            "augment.min_crop_scale": 0.5,
            "augment.max_aspect": 1.3,
            "augment.brightness": 0.3,
            "augment.contrast": 0.3,
            "augment.saturation": 0.3,
            "optimizer.ema": 0.9,
            **changes,
        }
    )


def deterministic_config(accumulation: int) -> ConfigDict:
    """Config with frozen batch norms, no dropout and SGD, where parameters differ as much as gradients."""
    config = make_config(
        **{
            "augment.flip": True,
            "augment.min_crop_scale": 0.5,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.5,
            "optimizer.grad_accum_steps": accumulation,
        }
    )
    config.optimizer.rules = FROZEN_BACKBONE
    return config


def model_of(config: ConfigDict, frozen: frozenset[str] = frozenset()):
    return build_model(build_spec(ModelSpec, config.model), VOCABULARY, LENGTH, jnp.float32, frozen_norms=frozen)


@functools.cache
def variables() -> dict:
    """Variables of the model, independent of the config. Running statistics differ from their initial values."""
    model = model_of(make_config())
    arguments = (jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros((1, 1, LENGTH - 1), jnp.int32))
    init = jax.jit(functools.partial(model.init, train=False), compiler_options=QUICK_COMPILATION)
    initial = dict(init(jax.random.key(0), *arguments))
    initial["batch_stats"] = jax.tree.map(lambda a: a * 1.5 + 0.1, initial["batch_stats"])
    return initial


def mesh_of(data: int, model: int = 1) -> jax.sharding.Mesh:
    return make_mesh(ConfigDict({"data": data, "model": model}), jax.devices()[: data * model])


def make_batch(seed: int, masked: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Sixteen smooth random images with two captions each, of two to six words."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 255, (ROWS, 2, 2, 3))
    images = np.kron(corners, np.ones((1, SIDE // 2, SIDE // 2, 1)))
    tokens = np.ones((ROWS, 2, LENGTH), np.int32)
    for caption in tokens.reshape(-1, LENGTH):
        words = random.integers(2, LENGTH - 1)
        caption[: words + 2] = [0, *random.integers(4, VOCABULARY, words), 2]
    mask = np.ones(ROWS, bool)
    mask[list(masked)] = False
    return {"image": images.astype(np.uint8), "tokens": tokens, "mask": mask, "index": np.arange(ROWS, dtype=np.int32)}


def bits(tree) -> dict[str, bytes]:
    return {str(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def one_device() -> Setup:
    return Setup(random_config(), mesh_of(1))


@functools.cache
def deterministic(accumulation: int) -> Setup:
    return Setup(deterministic_config(accumulation), mesh_of(1))


@functools.cache
def frozen_backbone() -> frozenset[str]:
    ((start, frozen),) = phases(variables()["params"], FROZEN_BACKBONE)
    assert start == 0 and frozen
    return frozen


def curve(setup: Setup, steps: int = 20, packed: bool = False) -> tuple[list[float], TrainState]:
    state, losses = setup.start, []
    for number in range(steps):
        batch = make_batch(number % 5, masked=(3, 7))
        if packed:
            batch |= pack_captions(batch["tokens"], batch["mask"], setup.mesh.shape["data"])
        state, metrics = setup.run(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


def test_losses_do_not_depend_on_the_number_of_devices():
    one, _ = curve(one_device())
    eight, state = curve(Setup(random_config(), mesh_of(8)))
    assert len(jax.tree.leaves(state.params)[0].devices()) == 8
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
    assert one[-1] < one[0] - 0.03  # the loss decreases, from ln(24)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_losses_do_not_depend_on_packing(devices):
    setup = one_device() if devices == 1 else Setup(random_config(), mesh_of(devices))
    np.testing.assert_allclose(curve(setup, packed=True)[0], curve(one_device())[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_losses_do_not_depend_on_how_parameters_are_sharded():
    config = random_config()
    config.mesh.rules = (("decoder/embedding", ("model", None)),)
    setup = Setup(config, mesh_of(4, 2))
    losses, state = curve(setup)
    assert not state.params["decoder"]["embedding"].is_fully_replicated
    np.testing.assert_allclose(losses, curve(one_device())[0], rtol=0, atol=1e-5)


def test_a_step_is_a_function_of_state_and_batch():
    setup, batch = one_device(), make_batch(1)
    repeated, metrics = setup.run(setup.start, batch)
    state, first = setup.run(setup.start, batch)
    assert bits(repeated) == bits(state) and bits(metrics) == bits(first)
    later = setup.start.replace(step=jax.device_put(np.int32(1), setup.shardings.step))
    _, later_metrics = setup.run(later, batch)
    assert abs(float(later_metrics["loss"]) - float(first["loss"])) > 1e-3  # different crops and dropout
    assert int(state.step) == 1


@pytest.mark.slow
def test_losses_depend_on_the_seed():
    other = Setup(random_config(seed=1), mesh_of(1))
    batch = make_batch(1)
    losses = [float(setup.run(setup.start, batch)[1]["loss"]) for setup in (one_device(), other)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_the_average_follows_the_parameters():
    setup = one_device()
    state = setup.start
    assert bits(state.ema) == bits(state.params)
    for number in range(3):
        before, (state, _) = state, setup.run(state, make_batch(number))
        fraction = 1 - min(0.9, (1 + number) / (10 + number))
        old, new = flatten(jax.device_get(before.ema)), flatten(jax.device_get(state.params))
        for path, average in flatten(state.ema).items():
            expected = old[path] + fraction * (new[path] - old[path])
            np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-7, err_msg=path)
    assert bits(state.weights()["params"]) == bits(state.ema) != bits(state.params)


def test_four_microbatches_equal_the_whole_batch():
    batch = make_batch(2, masked=(0, 9))
    weights = (batch["tokens"][..., 1:] != 1) * batch["mask"][:, None, None]
    tokens = [weights[part::4].sum() for part in range(4)]
    assert len(set(tokens)) > 1  # microbatches of different weights
    full, metrics = deterministic(1).run(deterministic(1).start, batch, frozen_backbone())
    parts, sliced = deterministic(4).run(deterministic(4).start, batch, frozen_backbone())
    for name in metrics:
        np.testing.assert_allclose(sliced[name], metrics[name], rtol=2e-6, err_msg=name)
    before, moved = flatten(deterministic(1).start.params), 0.0
    for path, value in flatten(full.params).items():
        np.testing.assert_allclose(flatten(parts.params)[path], value, rtol=0, atol=2e-7, err_msg=path)
        moved = max(moved, np.abs(np.asarray(value) - np.asarray(before[path])).max())
    assert moved > 1e-3


def test_frozen_parameters_and_their_norms_are_unchanged():
    setup = deterministic(1)
    state, _ = setup.run(setup.start, make_batch(3), frozen_backbone())
    before, after = flatten(setup.start.params), flatten(state.params)
    for path in before:
        unchanged = np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()
        assert unchanged == (path in frozen_backbone()), path
    assert bits(state.batch_stats) == bits(setup.start.batch_stats)


def test_with_frozen_norms_the_training_loss_equals_the_evaluation_loss():
    # Crops and flips do not change images of one colour.
    batch = make_batch(4, masked=(5,))
    batch["image"] = np.broadcast_to(batch["image"][:, :1, :1], batch["image"].shape).copy()
    _, metrics = deterministic(1).run(deterministic(1).start, batch, frozen_backbone())
    model = model_of(make_config())
    logits = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK_COMPILATION)(
        variables(), PREPROCESSING.normalise(batch["image"]), batch["tokens"][..., :-1]
    )
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = batch["tokens"][..., 1:]
    smoothing = deterministic(1).config.objective.label_smoothing
    hit = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    losses = -(1 - smoothing) * hit - smoothing * log_probs.mean(-1)
    real = (targets != 1) & batch["mask"][:, None, None]
    assert float(metrics["tokens"]) == real.sum()
    np.testing.assert_allclose(float(metrics["loss"]), losses[real].mean(), rtol=1e-5)


def test_masked_rows_do_not_contribute():
    one = make_batch(6, masked=(2, 11))
    two = {name: array.copy() for name, array in one.items()}
    for row in (2, 11):
        two["image"][row] = 255 - two["image"][row]
        two["tokens"][row] = 5
    states = [deterministic(1).run(deterministic(1).start, batch, frozen_backbone()) for batch in (one, two)]
    assert bits(states[0]) == bits(states[1])


@pytest.mark.slow
def test_a_stage_starts_to_train_at_its_step():
    config = random_config()
    backbone = r"image_encoder/backbone/.*"
    config.optimizer.rules = ((backbone, {"from_step": 3}), (rf"(?!{backbone}).*", {"lr": 1.0}))
    setup = Setup(config, mesh_of(1))
    (first, frozen), (second, nothing) = phases(variables()["params"], config.optimizer.rules)
    assert (first, second, nothing) == (0, 3, frozenset())

    states = [setup.start]
    for number in range(5):
        states.append(setup.run(states[-1], make_batch(number), frozen if number < 3 else nothing)[0])
    encoders = [bits(state.params["image_encoder"]["backbone"]) for state in states]
    statistics = [bits(state.batch_stats) for state in states]
    decoders = [bits(state.params["decoder"]) for state in states]
    assert encoders[0] == encoders[3] and statistics[0] == statistics[3]
    assert len(set(map(str, decoders))) == len(decoders)
    for before, after in ((3, 4), (4, 5)):
        changed = [path for path in encoders[0] if encoders[before][path] != encoders[after][path]]
        assert len(changed) > 0.9 * len(encoders[0])
        assert all(statistics[before][path] != statistics[after][path] for path in statistics[0])

"""A training step: its results, what they depend on, and the state that it must leave unchanged."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from quick_compilation import QUICK_COMPILATION
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
from input_pipeline.block_layout import BlockLayout
from input_pipeline.images import Preprocessing
from input_pipeline.packing import pack_blocks, pack_captions

VOCABULARY_SIZE, LENGTH, SIDE, ROWS = 24, 8, 32, 16
PREPROCESSING = Preprocessing(SIDE, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
FROZEN_BACKBONE = ((r"image_encoder/backbone/.*", {"lr": 0.0}), (r"(?!image_encoder/backbone/).*", {"lr": 1.0}))


@dataclasses.dataclass(eq=False)
class Setup:
    """State, shardings and compiled steps of a run on one mesh."""

    config: ConfigDict
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def initial_state(self) -> TrainState:
        optimizer, _ = self.optimizer
        state = create_state(make_variables(), optimizer, averaged=self.config.optimizer.ema > 0)
        return jax.device_put(state, self.shardings)

    @functools.cached_property
    def optimizer(self):
        return make_optimizer(self.config.optimizer, make_variables()["params"], 20)

    @functools.cached_property
    def shardings(self):
        params = make_variables()["params"]
        state = jax.eval_shape(lambda: create_state(make_variables(), self.optimizer[0], self.config.optimizer.ema > 0))
        param_shardings = parameter_shardings(params, self.config.mesh.rules, self.mesh)
        return shardings_like(state, params, param_shardings, self.mesh)

    @functools.cache  # noqa: B019, each step is compiled once, and there are few setups
    def step(self, frozen: frozenset[str]) -> Callable:
        model = make_model(self.config, frozen_norms(frozen))
        spec = RunSpec.from_config(self.config)
        objectives = make_objectives(spec.objective, joint_embedding=False)
        update = TrainStep(model, self.optimizer[0], PREPROCESSING, spec, frozen, objectives, mesh=self.mesh)
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


def make_stochastic_config(**changes) -> ConfigDict:
    """Returns a config with all random operations enabled, and batch norms over groups of two images."""
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


def make_config_without_dropout(grad_accum_steps: int) -> ConfigDict:
    """Returns a config with frozen batch norms and no dropout.

    With SGD, parameter differences are proportional to gradient differences.
    """
    config = make_config(
        **{
            "augment.flip": True,
            "augment.min_crop_scale": 0.5,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.5,
            "optimizer.grad_accum_steps": grad_accum_steps,
        }
    )
    config.optimizer.rules = FROZEN_BACKBONE
    return config


def make_model(config: ConfigDict, frozen: frozenset[str] = frozenset()):
    return build_model(build_spec(ModelSpec, config.model), VOCABULARY_SIZE, LENGTH, jnp.float32, frozen_norms=frozen)


@functools.cache
def make_variables() -> dict:
    """Returns variables for all configs. Running statistics differ from their initial values."""
    model = make_model(make_config())
    arguments = (jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros((1, 1, LENGTH - 1), jnp.int32))
    init = jax.jit(functools.partial(model.init, train=False), compiler_options=QUICK_COMPILATION)
    initial = dict(init(jax.random.key(0), *arguments))
    initial["batch_stats"] = jax.tree.map(lambda a: a * 1.5 + 0.1, initial["batch_stats"])
    return initial


def make_small_mesh(data: int, model: int = 1) -> jax.sharding.Mesh:
    return make_mesh(ConfigDict({"data": data, "model": model}), jax.devices()[: data * model])


def make_batch(seed: int, masked: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Returns 16 images, each with a random colour per quadrant and two captions of two to six tokens."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 255, (ROWS, 2, 2, 3))
    images = np.kron(corners, np.ones((1, SIDE // 2, SIDE // 2, 1)))
    tokens = np.ones((ROWS, 2, LENGTH), np.int32)
    for caption in tokens.reshape(-1, LENGTH):
        length = rng.integers(2, LENGTH - 1)
        caption[: length + 2] = [0, *rng.integers(4, VOCABULARY_SIZE, length), 2]
    mask = np.ones(ROWS, bool)
    mask[list(masked)] = False
    return {"image": images.astype(np.uint8), "tokens": tokens, "mask": mask, "index": np.arange(ROWS, dtype=np.int32)}


def to_bytes(tree) -> dict[str, bytes]:
    """Returns the contents of each leaf, keyed by path, for bit-exact comparison."""
    return {str(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def make_single_device_setup() -> Setup:
    return Setup(make_stochastic_config(), make_small_mesh(1))


@functools.cache
def make_setup_without_dropout(grad_accum_steps: int) -> Setup:
    return Setup(make_config_without_dropout(grad_accum_steps), make_small_mesh(1))


@functools.cache
def get_frozen_backbone() -> frozenset[str]:
    ((start, frozen),) = phases(make_variables()["params"], FROZEN_BACKBONE)
    assert start == 0 and frozen
    return frozen


def pack(batch: dict, packing: str, rows: int, microbatches: int = 1) -> dict:
    """Adds packed captions to a batch. Some images need an extra block."""
    arguments = batch["tokens"], batch["mask"], rows
    if packing == "always":
        return batch | pack_captions(*arguments)
    if packing == "blocks":
        return batch | pack_blocks(*arguments, BlockLayout(LENGTH, extra=ROWS // rows // microbatches), microbatches)
    return batch


def train(setup: Setup, steps: int = 20, packing: str = "never") -> tuple[list[float], TrainState]:
    """Returns the losses of all steps and the last state."""
    state, losses = setup.initial_state, []
    for step in range(steps):
        batch = pack(make_batch(step % 5, masked=(3, 7)), packing, setup.mesh.shape["data"])
        state, metrics = setup.run(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_devices():
    expected, _ = train(make_single_device_setup())
    losses, state = train(Setup(make_stochastic_config(), make_small_mesh(8)))
    assert len(jax.tree.leaves(state.params)[0].devices()) == 8
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    assert expected[-1] < expected[0] - 0.03  # the initial loss is about ln(24)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["always", "blocks"])
@pytest.mark.parametrize("devices", [1, 8])
def test_losses_do_not_depend_on_packing(devices, packing):
    setup = make_single_device_setup() if devices == 1 else Setup(make_stochastic_config(), make_small_mesh(devices))
    expected = train(make_single_device_setup())[0]
    np.testing.assert_allclose(train(setup, packing=packing)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "microbatches"), [(1, 4), (2, 4), (8, 1)])
def test_gradients_do_not_depend_on_packing_in_blocks(devices, microbatches):
    """With SGD, differences between parameters are proportional to differences between gradients."""
    batch, setup = make_batch(2, masked=(0, 9)), make_setup_without_dropout(1)
    expected, _ = setup.run(setup.initial_state, batch, get_frozen_backbone())
    sharded = Setup(make_config_without_dropout(microbatches), make_small_mesh(devices))
    packed = pack(batch, "blocks", devices, microbatches)
    actual, _ = sharded.run(sharded.initial_state, packed, get_frozen_backbone())
    for path, value in flatten(expected.params).items():
        np.testing.assert_allclose(flatten(actual.params)[path], value, rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_losses_do_not_depend_on_parameter_sharding():
    config = make_stochastic_config()
    config.mesh.rules = (("decoder/embedding", ("model", None)),)
    setup = Setup(config, make_small_mesh(4, 2))
    losses, state = train(setup)
    assert not state.params["decoder"]["embedding"].is_fully_replicated
    np.testing.assert_allclose(losses, train(make_single_device_setup())[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_step_depends_only_on_state_and_batch():
    setup, batch = make_single_device_setup(), make_batch(1)
    repeated, metrics = setup.run(setup.initial_state, batch)
    state, first = setup.run(setup.initial_state, batch)
    assert to_bytes(repeated) == to_bytes(state) and to_bytes(metrics) == to_bytes(first)
    later = setup.initial_state.replace(step=jax.device_put(np.int32(1), setup.shardings.step))
    _, later_metrics = setup.run(later, batch)
    assert abs(float(later_metrics["loss"]) - float(first["loss"])) > 1e-3  # different crops and dropout
    assert int(state.step) == 1


@pytest.mark.slow
def test_losses_depend_on_the_seed():
    other = Setup(make_stochastic_config(seed=1), make_small_mesh(1))
    batch = make_batch(1)
    losses = [float(setup.run(setup.initial_state, batch)[1]["loss"]) for setup in (make_single_device_setup(), other)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_the_moving_average_matches_its_formula():
    setup = make_single_device_setup()
    state = setup.initial_state
    assert to_bytes(state.ema) == to_bytes(state.params)
    for step in range(3):
        before, (state, _) = state, setup.run(state, make_batch(step))
        fraction = 1 - min(0.9, (1 + step) / (10 + step))
        old, new = flatten(jax.device_get(before.ema)), flatten(jax.device_get(state.params))
        for path, average in flatten(state.ema).items():
            expected = old[path] + fraction * (new[path] - old[path])
            np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-7, err_msg=path)
    assert to_bytes(state.weights()["params"]) == to_bytes(state.ema) != to_bytes(state.params)


@pytest.mark.slow
def test_four_microbatches_match_the_full_batch():
    batch = make_batch(2, masked=(0, 9))
    weights = (batch["tokens"][..., 1:] != 1) * batch["mask"][:, None, None]
    token_counts = [weights[i::4].sum() for i in range(4)]
    assert len(set(token_counts)) > 1, "microbatches must have different weights"
    setup, accumulating = make_setup_without_dropout(1), make_setup_without_dropout(4)
    full, metrics = setup.run(setup.initial_state, batch, get_frozen_backbone())
    accumulated, accumulated_metrics = accumulating.run(accumulating.initial_state, batch, get_frozen_backbone())
    for name in metrics:
        np.testing.assert_allclose(accumulated_metrics[name], metrics[name], rtol=2e-6, err_msg=name)
    before, largest_change = flatten(setup.initial_state.params), 0.0
    for path, value in flatten(full.params).items():
        np.testing.assert_allclose(flatten(accumulated.params)[path], value, rtol=0, atol=2e-7, err_msg=path)
        largest_change = max(largest_change, np.abs(np.asarray(value) - np.asarray(before[path])).max())
    assert largest_change > 1e-3


def test_frozen_parameters_and_batch_statistics_are_unchanged():
    setup = make_setup_without_dropout(1)
    state, _ = setup.run(setup.initial_state, make_batch(3), get_frozen_backbone())
    before, after = flatten(setup.initial_state.params), flatten(state.params)
    for path in before:
        unchanged = np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()
        assert unchanged == (path in get_frozen_backbone()), path
    assert to_bytes(state.batch_stats) == to_bytes(setup.initial_state.batch_stats)


def test_training_loss_with_frozen_norms_equals_evaluation_loss():
    batch = make_batch(4, masked=(5,))
    # Crops and flips do not change images of one colour.
    batch["image"] = np.broadcast_to(batch["image"][:, :1, :1], batch["image"].shape).copy()
    setup = make_setup_without_dropout(1)
    _, metrics = setup.run(setup.initial_state, batch, get_frozen_backbone())
    model = make_model(make_config())
    logits = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK_COMPILATION)(
        make_variables(), PREPROCESSING.normalise(batch["image"]), batch["tokens"][..., :-1]
    )
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = batch["tokens"][..., 1:]
    smoothing = setup.config.objective.label_smoothing
    target_log_probs = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    losses = -(1 - smoothing) * target_log_probs - smoothing * log_probs.mean(-1)
    is_target = (targets != 1) & batch["mask"][:, None, None]
    assert float(metrics["tokens"]) == is_target.sum()
    np.testing.assert_allclose(float(metrics["loss"]), losses[is_target].mean(), rtol=1e-5)


def test_masked_rows_do_not_affect_the_update():
    original = make_batch(6, masked=(2, 11))
    changed = {name: array.copy() for name, array in original.items()}
    for row in (2, 11):
        changed["image"][row] = 255 - changed["image"][row]
        changed["tokens"][row] = 5
    setup = make_setup_without_dropout(1)
    results = [setup.run(setup.initial_state, batch, get_frozen_backbone()) for batch in (original, changed)]
    assert to_bytes(results[0]) == to_bytes(results[1])


@pytest.mark.slow
def test_parameters_are_trained_from_the_step_of_their_rule():
    config = make_stochastic_config()
    backbone = r"image_encoder/backbone/.*"
    config.optimizer.rules = ((backbone, {"from_step": 3}), (rf"(?!{backbone}).*", {"lr": 1.0}))
    setup = Setup(config, make_small_mesh(1))
    (first, frozen), (second, frozen_later) = phases(make_variables()["params"], config.optimizer.rules)
    assert (first, second, frozen_later) == (0, 3, frozenset())

    states = [setup.initial_state]
    for step in range(5):
        states.append(setup.run(states[-1], make_batch(step), frozen if step < 3 else frozen_later)[0])
    encoders = [to_bytes(state.params["image_encoder"]["backbone"]) for state in states]
    statistics = [to_bytes(state.batch_stats) for state in states]
    decoders = [to_bytes(state.params["decoder"]) for state in states]
    assert encoders[0] == encoders[3] and statistics[0] == statistics[3]
    assert len(set(map(str, decoders))) == len(decoders)
    for before, after in ((3, 4), (4, 5)):
        changed = [path for path in encoders[0] if encoders[before][path] != encoders[after][path]]
        assert len(changed) > 0.9 * len(encoders[0])
        assert all(statistics[before][path] != statistics[after][path] for path in statistics[0])

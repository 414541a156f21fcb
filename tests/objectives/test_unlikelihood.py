"""Unlikelihood training: the formula, and a training run that selects the objective in its config."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from jax.sharding import NamedSharding, PartitionSpec
from program_stats import compute_stats

from caption_jax.errors import ConfigError
from caption_jax.objectives import unlikelihood
from caption_jax.objectives.forward_pass import CaptionRows
from caption_jax.objectives.unlikelihood import Unlikelihood, find_candidates
from caption_jax.specs import RunSpec
from caption_jax.telemetry.metrics_file import read_metrics
from caption_jax.training.loop import train_and_evaluate
from input_pipeline.block_layout import BlockLayout
from input_pipeline.packing import pack_blocks, pack_captions
from input_pipeline.special_tokens import PAD

ROWS, CAPTIONS, TARGETS, WIDTH, VOCABULARY_SIZE = 4, 2, 7, 5, 9
PACKINGS = {
    "never": lambda batch: {},
    "always": lambda batch: pack_captions(**batch, rows=1),
    "blocks": lambda batch: pack_blocks(**batch, rows=1, layout=BlockLayout(8, extra=4)),
}
NAME = "caption_jax.objectives.unlikelihood:Unlikelihood"


def make_batch() -> dict[str, np.ndarray]:
    """Returns captions over a small vocabulary, with many repeated tokens, and a mask of images."""
    rng = np.random.default_rng(0)
    tokens = np.full((ROWS, CAPTIONS, TARGETS + 1), PAD, np.int32)
    for caption in tokens.reshape(-1, TARGETS + 1):
        length = rng.integers(2, TARGETS)
        caption[: length + 2] = [0, *rng.integers(4, VOCABULARY_SIZE, length), 2]
    mask = np.ones(ROWS, bool)
    mask[1] = False
    return {"tokens": tokens, "mask": mask}


def make_decoder_outputs(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns decoder states, and the embedding matrix and bias of the output layer."""
    rng = np.random.default_rng(seed)
    shapes = ((ROWS, CAPTIONS, TARGETS, WIDTH), (VOCABULARY_SIZE, WIDTH), (VOCABULARY_SIZE,))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def compute_reference_loss(states, embedding, bias) -> tuple[float, float]:
    """Computes the mean loss and repetition probability from their definitions, token by token."""
    data, loss, repetition, count = make_batch(), 0.0, 0.0, 0
    for row, caption in np.ndindex(ROWS, CAPTIONS):
        targets = data["tokens"][row, caption, 1:]
        for position in range(TARGETS):
            if targets[position] == PAD or not data["mask"][row]:
                continue
            logits = embedding @ states[row, caption, position] + bias
            probabilities = np.exp(logits) / np.exp(logits).sum()
            negatives = set(targets[:position].tolist()) - {int(targets[position])}
            loss -= sum(np.log(1 - probabilities[token]) for token in negatives)
            repetition += sum(probabilities[token] for token in negatives)
            count += 1
    return loss / count, repetition / count


@functools.partial(jax.jit, static_argnums=3)
def compute_mean_loss(states, embedding, bias, packing: str):
    """Computes the mean loss and repetition probability with the objective."""
    data = make_batch()
    rows = CaptionRows.from_batch(data | PACKINGS[packing](data))
    states = rows.segments.to_rows(states.reshape(ROWS * CAPTIONS, TARGETS, WIDTH))

    def to_captions(x):
        return rows.segments.to_captions(x).reshape(ROWS, CAPTIONS, TARGETS, *x.shape[len(rows.weights.shape) :])

    forward = SimpleNamespace(
        shards=1,
        segments=rows.segments,
        weights=rows.weights,
        to_captions=to_captions,
        decoded=SimpleNamespace(states=states, logits=jnp.einsum("...d,vd->...v", states, embedding) + bias),
    )
    model = SimpleNamespace(output_layer=lambda: (embedding, bias))
    terms = Unlikelihood(0.5)(model, forward, data, {}, jax.random.key(0))
    return terms.losses["loss"].mean(), terms.metrics["repetition_probability"].mean()


@pytest.mark.parametrize("packing", PACKINGS)
def test_loss_matches_the_definition(packing):
    expected = compute_reference_loss(*(array.astype(np.float64) for array in make_decoder_outputs()))
    np.testing.assert_allclose(compute_mean_loss(*make_decoder_outputs(), packing), expected, rtol=1e-5)
    assert expected[1] > 0.1


@pytest.mark.parametrize("packing", PACKINGS)
def test_gradient_matches_the_definition(packing):
    gradients = jax.grad(lambda *arrays: compute_mean_loss(*arrays, packing)[0], (0, 1, 2))(*make_decoder_outputs())
    rng = np.random.default_rng(2)
    for index, gradient in enumerate(gradients):
        direction, step = rng.normal(size=gradient.shape), 1e-5
        shifted = [[array.astype(np.float64) for array in make_decoder_outputs()] for _ in range(2)]
        shifted[0][index] += step * direction
        shifted[1][index] -= step * direction
        expected = (compute_reference_loss(*shifted[0])[0] - compute_reference_loss(*shifted[1])[0]) / (2 * step)
        assert np.vdot(gradient, direction) == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_devices_reduce_the_gradients_of_all_chunks_once(dtype, monkeypatch):
    monkeypatch.setattr(unlikelihood, "_CHUNK_SIZE", 3)
    rng = np.random.default_rng(3)
    shapes = (8, CAPTIONS, TARGETS, WIDTH), (VOCABULARY_SIZE, WIDTH), (VOCABULARY_SIZE,)
    states, embedding, bias = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

    def compute_sum(states, embedding, bias, shards):
        forward = SimpleNamespace(decoded=SimpleNamespace(states=states), shards=shards)
        return unlikelihood._compute_log_normaliser(forward, embedding, bias).sum()

    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    sharded, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    shardings = (sharded, everywhere, everywhere)
    differentiate = jax.value_and_grad(compute_sum, (0, 1, 2))
    step = jax.jit(
        functools.partial(differentiate, shards=8), in_shardings=shardings, out_shardings=(everywhere, shardings)
    )
    lowered = step.lower(states, embedding, bias.astype(jnp.float32))
    compiled = lowered.compile()
    arguments = states, embedding, bias.astype(jnp.float32)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5 if dtype == "float32" else 0.03, atol=1e-5)
    as_float32 = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    jax.tree.map(close, as_float32(compiled(*arguments)), as_float32(differentiate(*arguments, shards=1)))
    collectives = compute_stats(lowered, compiled, mesh)["collectives"]
    assert {group["kind"] for group in collectives} == {"all-reduce"}
    assert not any("while" in source for group in collectives for source in group["sources"])


def test_candidates_are_distinct_earlier_tokens_except_the_target():
    mask = np.asarray(find_candidates(jnp.array([5, 6, 5, 5, 7])))
    positions = [np.flatnonzero(row).tolist() for row in mask]
    assert positions == [[], [0], [1], [1], [0, 1]]


def test_a_nonpositive_weight_is_rejected():
    with pytest.raises(ConfigError, match="weight of an unlikelihood objective must be above 0, got 0"):
        Unlikelihood(0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"train.packing": "always"}, {"train.packing": "blocks"}, {"optimizer.grad_accum_steps": 2}]
)
def test_training_with_unlikelihood_decreases_the_loss(settings, small_images, tmp_path):
    config = small_run.get_config().unlock()
    config.data.root = str(small_images)
    config.update_from_flattened_dict({"train.steps": 12, "train.log_every": 1, **settings})
    config.objective.terms = {"unlikelihood": {"name": NAME, "weight": 0.5}}
    train_and_evaluate(RunSpec.from_config(config), tmp_path)
    rows = [row.values for row in read_metrics(tmp_path / "metrics.jsonl") if row.split == "train"]
    assert len(rows) == 12
    assert all(row["unlikelihood/loss"] >= row["unlikelihood/repetition_probability"] > 0 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1

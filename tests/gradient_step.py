"""Metrics and gradients of one training step, for comparisons between forms of packing, devices and processes.

As a script, this is one of several processes that perform the step together:

    python gradient_step.py OBJECTIVES PACKING MICROBATCHES HOST:PORT PROCESSES PROCESS OUTPUT.npz
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from reward_captions import make_split
from small_run import shrink

from caption_jax.config import default_config
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.objective import Objective
from caption_jax.objectives.total_objective import make_objectives
from caption_jax.parameters.freezing import frozen_norms
from caption_jax.parameters.paths import flatten
from caption_jax.parameters.sharding import batch_sharding, make_mesh, replicated
from caption_jax.runs.description import TextTokenizer, compute_dtype
from caption_jax.specs import RunSpec
from caption_jax.training.batch_placer import make_batch_placer
from caption_jax.training.state import create_state
from caption_jax.training.step import TrainStep
from input_pipeline.block_layout import BlockLayout
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import PAD
from input_pipeline.tokenizer import Tokenizer, Vocabulary

IMAGES, SIDE, VOCABULARY_SIZE, LENGTH = 32, 32, 30, 12
TEXTS = 2  # context texts per image
GRADIENT = "gradient of "  # prefix of the parameters in a result
BLOCK_LENGTHS = {"blocks": 24, "short_blocks": LENGTH - 1}  # short blocks have the length of the longest caption
OBJECTIVES = {
    "captions": {},
    # Contrasts all images of the batch, so it cannot be combined with gradient accumulation.
    "contrastive": {"objective.contrastive_weight": 0.5},
    "context": {
        "model.context.max_texts": TEXTS,
        "model.context.form": "tokens",
        "data.context": "unused",
        "objective.terms": {"repetition": {"name": "caption_jax.objectives.unlikelihood:Unlikelihood", "weight": 0.5}},
    },
    # The samples depend on how the batch is split into microbatches.
    "reward": {
        "objective.caption_weight": 0.5,
        "objective.contrastive_weight": 0.5,
        "objective.terms": {
            "reward": {
                "name": "caption_jax.objectives.sequence_reward:SequenceReward",
                "baseline": "greedy",
                "samples": 3,
                "bleu_4": 1.0,
                "rouge_l": 1.0,
                "similarity": 0.5,
                "length": 0.1,
                "function_word_ending": 0.2,
            }
        },
    },
}

# Discards updates, and stores the gradients as its state.
RECORD_GRADIENTS = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda gradients, state, params=None: (jax.tree.map(jnp.zeros_like, gradients), gradients),
)


def make_spec(objectives: str, packing: str = "never", microbatches: int = 1, **other: str) -> RunSpec:
    """Returns the spec of a small model without dropout, in float32 unless `other` keys change this."""
    config = default_config()
    shrink(config)
    config.model.text_encoder.update({"layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "dropout": 0.0})
    changes = {
        "dtype": "float32",
        "data.batch_size": IMAGES,
        "data.image_size": SIDE,
        "data.max_length": LENGTH,
        "augment.flip": True,
        "model.memory_dropout": 0.0,
        "model.decoder.dropout": 0.0,
        "model.joint_embedding.width": 16,
        "optimizer.grad_accum_steps": microbatches,
        "train.packing": "blocks" if packing in BLOCK_LENGTHS else packing,
        **OBJECTIVES[objectives],
        **other,
    }
    terms = changes.pop("objective.terms", {})
    config.update_from_flattened_dict(changes)
    config.objective.terms = terms
    return RunSpec.from_config(config)


def make_batch(captions: int = 3) -> dict[str, np.ndarray]:
    """Returns a batch with every kind of image that differs in how many tokens its captions have.

    These are images with one caption (the others are padding, or repeat it), with the longest captions, with empty
    captions, without captions and an unreadable one. The other images have captions of random lengths.
    """
    rng = np.random.default_rng(0)
    tokens = np.full((IMAGES, captions, LENGTH), PAD, np.int32)
    for caption in tokens.reshape(-1, LENGTH):
        words = rng.integers(1, LENGTH - 1)
        caption[: words + 2] = [0, *rng.integers(4, VOCABULARY_SIZE, words), 2]
    tokens[0, 1:] = PAD
    tokens[1, 1:] = tokens[1, :1]
    tokens[2] = [0, *rng.integers(4, VOCABULARY_SIZE, LENGTH - 2), 2]
    tokens[3, :, 1:] = [2, *[PAD] * (LENGTH - 2)]
    tokens[4] = PAD
    context = rng.integers(4, VOCABULARY_SIZE, (IMAGES, TEXTS, LENGTH)).astype(np.int32)
    context[6], context[7, 1], context[8, :, 5:] = PAD, PAD, PAD
    return {
        "image": rng.integers(0, 255, (IMAGES, SIDE, SIDE, 3)).astype(np.uint8),
        "tokens": tokens,
        "context": context,
        "mask": np.arange(IMAGES) != 5,
        "index": np.arange(IMAGES, dtype=np.int32),
    }


def make_model(spec: RunSpec) -> tuple[ImageCaptioningModel, dict]:
    """Returns a model whose batch norms use stored statistics, which do not depend on microbatches, and variables."""
    has_texts = spec.has_context or spec.has_joint_embedding
    settings = roberta_settings(spec.model.text_encoder, VOCABULARY_SIZE, LENGTH, PAD) if has_texts else None
    build = functools.partial(
        build_model,
        spec.model,
        VOCABULARY_SIZE,
        LENGTH,
        compute_dtype(spec.dtype),
        text_encoder=settings,
        joint_embedding=spec.has_joint_embedding,
    )
    arguments = jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros((1, 1, LENGTH - 1), jnp.int32)
    variables = jax.jit(functools.partial(build().init, train=False))(jax.random.key(0), *arguments)
    return build(frozen_norms=frozen_norms(flatten(variables["params"]))), jax.device_get(variables)


def make_constants(objectives: Mapping[str, Objective]) -> dict[str, dict]:
    """Returns the constants of objectives, computed from captions with a few short words."""
    rng = np.random.default_rng(1)
    words = ["a", "dog", "cat", "runs", "on", "the", "red", "mat"]
    split = make_split([[" ".join(rng.choice(words, 6)) for _ in range(2)] for _ in range(IMAGES)])
    tokenizer = Tokenizer.train(split.captions, 400)
    vocabulary = Vocabulary(tokenizer, [*range(tokenizer.size)][4 - VOCABULARY_SIZE :])
    constants = {label: objective.prepare(split, vocabulary) for label, objective in objectives.items()}
    return {label: arrays for label, arrays in constants.items() if arrays}


def make_step(
    objectives: str, packing: str = "never", devices: int = 1, microbatches: int = 1, **other: str
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns a function from a batch to the metrics and gradients of a step, by name.

    Args:
        objectives: a key of `OBJECTIVES`.
        packing: "never", "always" or a key of `BLOCK_LENGTHS`.
        devices: total number of devices.
        microbatches: number of microbatches.
        other: other config keys.
    """
    spec = make_spec(objectives, packing, microbatches, **other)
    model, variables = make_model(spec)
    mesh = make_mesh(spec.mesh, jax.devices()[:devices])
    step = TrainStep(
        model,
        RECORD_GRADIENTS,
        Preprocessing(SIDE),
        spec,
        frozenset(),
        make_objectives(spec.objective, joint_embedding=spec.has_joint_embedding),
        text_ids=TextTokenizer(None, False, LENGTH).from_caption_ids,
        mesh=mesh,
    )
    constants = make_constants(step.objectives)
    shardings = replicated(mesh), batch_sharding(mesh), replicated(mesh)
    # XLA must not remove casts to bfloat16, which the tests of gradients in bfloat16 are about.
    options = {"xla_allow_excess_precision": False}
    jitted = jax.jit(step, in_shardings=shardings, out_shardings=replicated(mesh), compiler_options=options)
    state = jax.device_put(create_state(variables, RECORD_GRADIENTS, averaged=False), replicated(mesh))
    layout = None
    if packing in BLOCK_LENGTHS:
        layout = BlockLayout(BLOCK_LENGTHS[packing], extra=2 * IMAGES // (devices * microbatches))
    place = make_batch_placer(spec, mesh, layout)

    def compute(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not spec.has_context:
            batch = {name: array for name, array in batch.items() if name != "context"}
        new_state, metrics = jax.device_get(jitted(state, place(batch), constants))
        return metrics | {GRADIENT + path: array for path, array in flatten(new_state.opt_state).items()}

    return compute


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Asserts that all metrics and gradients differ by at most 1e-5, relative to the largest value of each.

    Some gradients are 0, such as those of the biases of RoBERTa's keys, and computed as rounding errors.
    """
    assert actual.keys() == expected.keys()
    largest = max(np.abs(array).max() for name, array in expected.items() if name.startswith(GRADIENT))
    for name, array in expected.items():
        scale = max(np.abs(array).max(), 1e-3 * largest)
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-5 * scale, err_msg=name)


def main(
    objectives: str, packing: str, microbatches: str, address: str, processes: str, process: str, output: str
) -> None:
    """Performs the step together with the other processes. Process 0 writes the result to the file `output`."""
    count, index = int(processes), int(process)
    jax.distributed.initialize(address, count, index)
    rows = slice(index * IMAGES // count, (index + 1) * IMAGES // count)
    compute = make_step(objectives, packing, jax.device_count(), int(microbatches))
    result = compute({name: array[rows] for name, array in make_batch().items()})
    if index == 0:
        np.savez(Path(output), **result)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Captions per second when training with a frozen image encoder, and the FLOPs utilisation of the training step.

    python -m benchmarks.frozen_training [--parts=keras,utilisation] [--batch=32] [--captions=5] [--clock=wall]

keras: compares training on cached features with Keras's published image captioner on TensorFlow
(`benchmarks/peers/keras_published.py`), which either runs EfficientNetB0 in every epoch or reads stored features. Both
models have one decoder layer of width 512, feed-forward width 512, 2 heads and a vocabulary of 10,000. Both train on
the same number of images (224 pixels) and captions (25 tokens) per step. The Keras model is measured with one update
per caption and with one update per batch, and the faster variant is compared with ours.

utilisation: measures the training step of `configs/flickr8k.py` on stored features of stage_7. Utilisation is the
useful FLOP/s of the step divided by the FLOP/s of a product of square matrices by jnp or NumPy, whichever is faster
(`benchmarks.peak`).
Useful FLOPs are those of matrix products in the forward and backward pass, excluding padding and masked keys. Norms,
softmax, dropout and the optimizer are not counted. `ratio` is the utilisation divided by 0.4.

Captions have random tokens, and lengths distributed as in Flickr8k (13.3 input tokens on average, standard deviation
3.8). Our implementation is the program that a run compiles (`caption_jax.training.program`) with the settings of
main.py, in float32, including the transfer of batches to the device. Each implementation runs in a separate process.
The processes alternate, and in each round, a process makes untimed calls before the timed one. Requires the bench
extra. `--clock=cpu` measures CPU time summed over all cores instead of wall time, which is reproducible on a busy
machine. The last line is JSON, and `ratio` is the lowest of all comparisons.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.alternate import alternate, print_result, print_times, serve, start_sides
from benchmarks.conditions import Conditions
from benchmarks.peak import make_product_commands, print_utilisation, split_peak
from benchmarks.peers.keras_published import Design
from caption_jax.runtime.process import MALLOC_SETTINGS, set_up_process
from caption_jax.specs import RunSpec
from input_pipeline.special_tokens import EOS

MEAN_LENGTH, LENGTH_STDDEV = 13.25, 3.84  # input tokens per Flickr8k caption, with a vocabulary of 4,000
IMAGE_SIZE, GRID_POSITIONS, CHANNELS = 224, 49, 1280
STAGE_7_SHAPE = (7, 7, 320)
FLICKR_VOCABULARY_SIZE, FLICKR_BATCH_SIZE, FLICKR_BATCHES = 3569, 32, 4
TARGET_UTILISATION = 0.4
# From names of sides to the seconds of each, and the peak FLOP/s.
TimeSides = Callable[[list[str]], tuple[dict[str, float], float]]


def make_tokens(images: int, captions: int, length: int, vocabulary_size: int, seed: int) -> np.ndarray:
    """Returns captions as int32 [images, captions, length]: <s>, random tokens, </s> and padding."""
    rng = np.random.default_rng(seed)
    end = np.clip(np.rint(rng.normal(MEAN_LENGTH, LENGTH_STDDEV, (images, captions))), 3, length - 1)[..., None]
    position = np.arange(length)
    tokens = rng.integers(4, vocabulary_size, (images, captions, length))
    tokens = np.where(position < end, tokens, np.where(position == end, 2, 1))
    return np.where(position == 0, 0, tokens).astype(np.int32)


def make_keras_design_spec() -> RunSpec:
    """Returns a spec with the model dimensions of Keras's published design."""
    from caption_jax.config import default_config

    config, design = default_config(), Design()
    config.data.max_length = design.length
    config.data.feature_cache.stage = "head"
    config.model.decoder.update(layers=1, heads=2, width=design.width, feed_forward=design.feed_forward)
    config.optimizer.update(rules=_FROZEN, warmup_steps=100)
    return RunSpec.from_config(config)


def make_flickr8k_spec() -> RunSpec:
    """Returns the spec of configs/flickr8k.py with the whole backbone frozen."""
    from caption_jax.configs import flickr8k

    with flickr8k.get_config().unlocked() as config:
        config.data.feature_cache.stage = "stage_7"
        config.optimizer.rules = _FROZEN
    return RunSpec.from_config(config)


_FROZEN = ((r"image_encoder/backbone/.*", {"lr": 0.0}), (r"(?!image_encoder/backbone/).*", {"lr": 1.0}))


def make_training_steps(
    spec: RunSpec,
    vocabulary_size: int,
    batches: list[dict[str, np.ndarray]],
    constants: dict[str, dict[str, Any]] | None = None,
    end_probability: float = 0.0,
) -> Callable[[], Any]:
    """Returns a function that performs one update per batch, with the program that a run compiles.

    Args:
        spec: Spec of the run.
        vocabulary_size: Number of tokens of the vocabulary.
        batches: Batches of stored features.
        constants: Constants of the objectives, by label.
        end_probability: Initial probability of </s> after each token; 0 for that of random weights.
    """
    import jax

    from caption_jax.parameters.freezing import phases
    from caption_jax.parameters.sharding import make_mesh
    from caption_jax.runs.description import ModelSettings, RunDescription
    from caption_jax.runs.initial_variables import init_variables
    from caption_jax.training.batch_placer import make_batch_placer
    from caption_jax.training.program import make_program
    from input_pipeline.images import Preprocessing

    settings = ModelSettings(vocabulary_size, spec.data.max_length, {"padding": "same", "norm_epsilon": 1e-3})
    description = RunDescription(spec, settings, Preprocessing(IMAGE_SIZE), vocabulary=None)  # no text is encoded
    mesh = make_mesh(spec.mesh)
    program = make_program(description, mesh, steps=10_000).with_constants(constants or {})
    put_on_devices = make_batch_placer(spec, mesh)
    variables = init_variables(description)
    if end_probability:
        bias = variables["params"]["decoder"]["output_bias"]
        odds = end_probability / (1 - end_probability)
        variables["params"]["decoder"]["output_bias"] = bias.at[EOS].set(np.log(odds * vocabulary_size))
    state = program.start(variables)
    ((_, frozen),) = phases(state.params, spec.optimizer.rules)
    update = program.update(frozen)

    def run_steps() -> None:
        nonlocal state
        for batch in batches:
            state, metrics = update(state, put_on_devices(batch), program.constants)
        if not np.isfinite(float(jax.block_until_ready(metrics)["loss"])):
            raise AssertionError("the loss is not finite")

    return run_steps


def make_batch(
    images: int, captions: int, spec: RunSpec, vocabulary_size: int, shape: tuple[int, ...], seed: int
) -> dict[str, np.ndarray]:
    """Returns a batch of random features [images, *shape] and random captions."""
    features = np.random.default_rng(seed).normal(size=(images, *shape)).astype(np.float16)
    tokens = make_tokens(images, captions, spec.data.max_length, vocabulary_size, seed)
    return {"features": features, "tokens": tokens, "mask": np.ones(images, bool)}


def make_keras_design_work(batch: int, captions: int) -> tuple[RunSpec, int, list[dict[str, np.ndarray]]]:
    """Returns the arguments of `make_training_steps` for Keras's published design and stored features."""
    spec, vocabulary_size = make_keras_design_spec(), Design().vocabulary_size
    return spec, vocabulary_size, [make_batch(batch, captions, spec, vocabulary_size, (7, 7, CHANNELS), 0)]


def make_flickr8k_batches() -> list[dict[str, np.ndarray]]:
    """Returns several batches for configs/flickr8k.py, because the number of tokens varies between batches."""
    spec = make_flickr8k_spec()
    captions = spec.data.captions_per_image
    return [
        make_batch(FLICKR_BATCH_SIZE, captions, spec, FLICKR_VOCABULARY_SIZE, STAGE_7_SHAPE, seed)
        for seed in range(FLICKR_BATCHES)
    ]


def count_useful_flops(spec: RunSpec, vocabulary_size: int, batch: dict[str, np.ndarray]) -> float:
    """Returns the FLOPs of the matrix products of a step, excluding padding and masked keys.

    The backward pass of a matrix product consists of two products, one for the gradient of each factor. There are two
    exceptions: the last convolution, which is not part of the step if its output is stored, is frozen and has no
    gradients, and the projection of its output needs only the gradient of its weights.
    """
    decoder, memory_length = spec.model.decoder, batch["features"].shape[1] * batch["features"].shape[2]
    width, images = decoder.width, len(batch["tokens"])
    lengths = (batch["tokens"][..., 1:] != 1).sum(-1)  # input tokens per caption
    tokens = lengths.sum()
    projections = tokens * (6 * width * width + 2 * width * decoder.feed_forward)
    attention = 2 * width * ((lengths * (lengths + 1) // 2).sum() + tokens * memory_length)
    memory = images * memory_length * 2 * width * width
    trained = decoder.layers * (projections + attention + memory) + tokens * width * vocabulary_size
    activations = images * memory_length * CHANNELS
    last_convolution = 0 if spec.data.feature_cache.stage == "head" else activations * batch["features"].shape[-1]
    return 2.0 * (3 * trained + 2 * activations * width + last_convolution)


def make_workload(name: str, batch: int, captions: int) -> Callable[[], Any]:
    """Returns the function that the named child process times."""
    if name == "flickr8k":
        return make_training_steps(make_flickr8k_spec(), FLICKR_VOCABULARY_SIZE, make_flickr8k_batches())
    if name == "ours":
        return make_training_steps(*make_keras_design_work(batch, captions))
    design = Design()
    from benchmarks.peers.keras_published import make_train_step

    _, source, updates = name.split("_")
    rng, tokens = np.random.default_rng(0), make_tokens(batch, captions, design.length, design.vocabulary_size, 0)
    if source == "cached":
        inputs = rng.normal(size=(batch, GRID_POSITIONS, CHANNELS)).astype(np.float16)
    else:
        inputs = rng.integers(0, 256, (batch, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return make_train_step(design, inputs, tokens, is_features=source == "cached", updates=updates)


def compare_with_keras(batch: int, captions: int, time_sides: TimeSides) -> dict[str, dict[str, float]]:
    """Returns the results of the comparisons with Keras, in captions per second.

    Args:
        batch: Images per step.
        captions: Captions per image.
        time_sides: Returns the seconds of each side and the peak FLOP/s.
    """
    keras = [f"keras_{source}_{updates}" for source in ("recomputed", "cached") for updates in ("caption", "batch")]
    seconds, peak = time_sides(["ours", *keras])
    rates = {name: batch * captions / elapsed for name, elapsed in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:24} {rate:8.1f} captions/s", flush=True)
    spec, vocabulary_size, (features,) = make_keras_design_work(batch, captions)
    useful = count_useful_flops(spec, vocabulary_size, features)
    utilisation = print_utilisation("Keras's design", useful, seconds["ours"], peak)
    comparisons = {}
    for source in ("recomputed", "cached"):
        peer = max(rates[name] for name in keras if source in name)
        comparison = {"ours": rates["ours"], "peer": peer, "ratio": rates["ours"] / peer, "utilisation": utilisation}
        comparisons[f"Keras, features {source}"] = comparison
    return comparisons


def measure_utilisation(time_sides: TimeSides) -> dict[str, dict[str, float]]:
    """Returns the FLOP utilisation of the training step of configs/flickr8k.py, with useful GFLOP/s.

    Args:
        time_sides: Returns the seconds of each side and the peak FLOP/s.
    """
    seconds, peak = time_sides(["flickr8k"])
    batches = make_flickr8k_batches()
    useful = sum(count_useful_flops(make_flickr8k_spec(), FLICKR_VOCABULARY_SIZE, batch) for batch in batches)
    step, captions = seconds["flickr8k"] / FLICKR_BATCHES, batches[0]["tokens"][..., 0].size
    print(f"flickr8k: {1e3 * step:.0f} ms per step ({captions / step:.0f} captions/s)", flush=True)
    utilisation = print_utilisation(f"flickr8k, {FLICKR_BATCHES} steps", useful, seconds["flickr8k"], peak)
    comparison = {
        "ours": useful / seconds["flickr8k"] / 1e9,
        "peer": TARGET_UTILISATION * peak / 1e9,
        "utilisation": utilisation,
        "ratio": utilisation / TARGET_UTILISATION,
    }
    return {f"flickr8k, GFLOP/s against {TARGET_UTILISATION} of the peak": comparison}


def main() -> None:
    """Runs the benchmark, or one implementation as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="keras,utilisation")
    parser.add_argument("--batch", type=int, default=32, help="images per step in the comparison with Keras")
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="wall time or CPU time")
    parser.add_argument("--serve", default="", help="run this implementation as a child process")
    options = parser.parse_args()
    if options.serve:
        if not options.serve.startswith("keras_"):
            set_up_process()  # like main.py; the environment of this process contains MALLOC_SETTINGS
        serve(make_workload(options.serve, options.batch, options.captions), untimed_runs=1)
        return

    flags = [f"--batch={options.batch}", f"--captions={options.captions}"]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **MALLOC_SETTINGS,
    }
    conditions = Conditions()

    def time_sides(names: list[str]) -> tuple[dict[str, float], float]:
        """Returns the median seconds of each side and the peak FLOP/s, both by the selected clock."""
        commands = {name: (["benchmarks.frozen_training", f"--serve={name}", *flags], environment) for name in names}
        with start_sides(commands | make_product_commands()) as sides:
            seconds, peak = split_peak(alternate(sides, options.rounds, conditions), options.clock)
        print_times(seconds, 1, "runs/s")
        return {name: getattr(elapsed, options.clock) for name, elapsed in seconds.items()}, peak

    comparisons: dict[str, dict[str, float]] = {}
    if "keras" in options.parts:
        comparisons |= compare_with_keras(options.batch, options.captions, time_sides)
    if "utilisation" in options.parts:
        comparisons |= measure_utilisation(time_sides)
    print_result("frozen_training", comparisons, "captions/s", conditions)


if __name__ == "__main__":
    main()

"""Captions per second when training with a frozen image encoder, and the FLOP utilisation of the training step.

    python -m benchmarks.frozen_training [--parts=keras,utilisation] [--batch=32] [--captions=5] [--clock=wall]

keras: the published Keras design (`benchmarks/peers/keras_published.py`) on TensorFlow, compared with ours, which reads
the feature cache. The peer runs EfficientNetB0 in every epoch, or reads its stored features. Both have one decoder
layer of width 512, feed-forward width 512, 2 heads and a vocabulary of 10,000, and train on the same number of images
(224 pixels) and captions (25 tokens) per step. The design runs with one update per caption and with one update per
batch; the faster of the two is the peer.

utilisation: the step of `configs/flickr8k.py` on stored features of stage_7. Useful FLOP/s over the FLOP/s of a product
of square matrices by jnp or NumPy, whichever is faster. Useful FLOPs are those of the matrix products in the forward
and backward pass, for tokens that are not padding and the keys that they attend to. Norms, softmax, dropout and the
optimizer are not counted. The ratio of the cell is utilisation over 0.4.

Captions have random tokens, and lengths distributed as in Flickr8k (13.3 input tokens on average, standard deviation
3.8). Ours is the program that a run compiles (`caption_jax.training.program`), with batches placed on the device as in
a run. Float32. Each side runs in its own process, and they alternate; every turn starts with untimed work.
Requires the bench extra. `--clock=processor` measures CPU time, summed over all cores, instead of wall time,
because it is reproducible on a busy machine. The last line is JSON; its `ratio` is that of the worst cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.alternate import alternate, print_result, serve, start_sides
from benchmarks.peers.keras_published import Design
from caption_jax.runtime.process import HUGE_PAGES
from caption_jax.specs import RunSpec

MEAN_LENGTH, LENGTH_STDDEV = 13.25, 3.84  # input tokens per Flickr8k caption, with a vocabulary of 4,000
SIDE, CELLS, CHANNELS = 224, 49, 1280
STAGE = (7, 7, 320)  # shape of stage_7's features
FLICKR_VOCABULARY, FLICKR_BATCH, BATCHES, MATRIX_SIZE = 3569, 32, 4, 2048
TARGET_UTILISATION = 0.4


def make_tokens(images: int, captions: int, length: int, vocabulary: int, seed: int) -> np.ndarray:
    """Returns int32 [images, captions, length]: <s>, random tokens, </s> and padding."""
    random = np.random.default_rng(seed)
    end = np.clip(np.rint(random.normal(MEAN_LENGTH, LENGTH_STDDEV, (images, captions))), 3, length - 1)[..., None]
    position = np.arange(length)
    tokens = random.integers(4, vocabulary, (images, captions, length))
    tokens = np.where(position < end, tokens, np.where(position == end, 2, 1))
    return np.where(position == 0, 0, tokens).astype(np.int32)


def published_size() -> Any:
    """Returns our config with the sizes of the Keras design."""
    from caption_jax.config import default_config

    config, design = default_config(), Design()
    config.data.max_length = design.length
    config.data.feature_cache.stage = "head"
    config.model.decoder.update(layers=1, heads=2, width=design.width, feed_forward=design.feed_forward)
    config.optimizer.rules = _FROZEN
    return RunSpec.from_config(config)


def flickr8k() -> Any:
    """Returns configs/flickr8k.py with the whole backbone frozen."""
    from caption_jax.configs import flickr8k

    with flickr8k.get_config().unlocked() as config:
        config.data.feature_cache.stage = "stage_7"
        config.optimizer.rules = _FROZEN
    return RunSpec.from_config(config)


_FROZEN = ((r"image_encoder/backbone/.*", {"lr": 0.0}), (r"(?!image_encoder/backbone/).*", {"lr": 1.0}))


def our_step(config: Any, vocabulary: int, batches: list[dict[str, np.ndarray]]) -> Callable[[], Any]:
    """Returns a function that performs one update per batch, as a run does."""
    import jax

    from caption_jax.parameters.freezing import phases
    from caption_jax.parameters.sharding import make_mesh
    from caption_jax.runs.description import ModelSettings, RunDescription
    from caption_jax.runs.initial_variables import init_variables
    from caption_jax.training.batch_placer import batch_placer
    from caption_jax.training.program import make_program
    from input_pipeline.images import Preprocessing

    settings = ModelSettings(vocabulary, config.data.max_length, {"padding": "same", "norm_epsilon": 1e-3})
    description = RunDescription(config, settings, Preprocessing(SIDE), vocabulary=None)  # no text is encoded
    mesh = make_mesh(config.mesh)
    program, put_on_devices = make_program(description, mesh, steps=10_000), batch_placer(config, mesh)
    state = program.start(init_variables(description))
    ((_, frozen),) = phases(state.params, config.optimizer.rules)
    update = program.update(frozen)

    def steps() -> None:
        nonlocal state
        for batch in batches:
            state, metrics = update(state, put_on_devices(batch), program.constants)
        if not np.isfinite(float(jax.block_until_ready(metrics)["loss"])):
            raise AssertionError("the loss is not finite")

    return steps


def our_batch(images: int, captions: int, config: Any, vocabulary: int, shape: tuple[int, ...], seed: int) -> dict:
    """Returns a batch of stored features."""
    features = np.random.default_rng(seed).normal(size=(images, *shape)).astype(np.float16)
    tokens = make_tokens(images, captions, config.data.max_length, vocabulary, seed)
    return {"features": features, "tokens": tokens, "mask": np.ones(images, bool)}


def flickr8k_batches() -> list[dict[str, np.ndarray]]:
    """Returns several batches, because the number of tokens varies."""
    config = flickr8k()
    captions = config.data.captions_per_image
    return [our_batch(FLICKR_BATCH, captions, config, FLICKR_VOCABULARY, STAGE, seed) for seed in range(BATCHES)]


def useful_operations(config: Any, vocabulary: int, batch: dict[str, np.ndarray]) -> float:
    """FLOPs of the matrix products of a step, excluding padding and masked keys.

    In the backward pass a product costs two products, one for the gradient of each factor. The last convolution is
    frozen and has no gradient; the projection of its output has a gradient for its weights only.
    """
    decoder, memory_length = config.model.decoder, batch["features"].shape[1] * batch["features"].shape[2]
    width, images = decoder.width, len(batch["tokens"])
    lengths = (batch["tokens"][..., 1:] != 1).sum(-1)  # input tokens per caption
    tokens = lengths.sum()
    projections = tokens * (6 * width * width + 2 * width * decoder.feed_forward)
    attention = 2 * width * ((lengths * (lengths + 1) // 2).sum() + tokens * memory_length)
    memory = images * memory_length * 2 * width * width
    trained = decoder.layers * (projections + attention + memory) + tokens * width * vocabulary
    cells = images * memory_length * CHANNELS
    return 2.0 * (3 * trained + 2 * cells * width + cells * batch["features"].shape[-1])


def matrix_product(library: str) -> Callable[[], Any]:
    """Returns a function that multiplies two square matrices, large enough to reach the processor's peak."""
    a, b = np.random.default_rng(0).normal(size=(2, MATRIX_SIZE, MATRIX_SIZE)).astype(np.float32)
    if library == "numpy":
        return lambda: a @ b
    import jax
    import jax.numpy as jnp

    product, x, y = jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(b)
    return lambda: product(x, y).block_until_ready()


def side_work(name: str, batch: int, captions: int) -> Callable[[], Any]:
    """Returns the work of the named side."""
    if name.startswith("product_"):
        return matrix_product(name.removeprefix("product_"))
    if name == "flickr8k":
        return our_step(flickr8k(), FLICKR_VOCABULARY, flickr8k_batches())
    design = Design()
    if name == "ours":
        config = published_size()
        grid = our_batch(batch, captions, config, design.vocabulary, (7, 7, CHANNELS), 0)
        return our_step(config, design.vocabulary, [grid])
    from benchmarks.peers.keras_published import train_step

    _, source, updates = name.split("_")
    random, tokens = np.random.default_rng(0), make_tokens(batch, captions, design.length, design.vocabulary, 0)
    if source == "cached":
        inputs = random.normal(size=(batch, CELLS, CHANNELS)).astype(np.float16)
    else:
        inputs = random.integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    return train_step(design, inputs, tokens, features=source == "cached", updates=updates)


def against_keras(batch: int, captions: int, turns: Callable) -> dict[str, dict[str, float]]:
    """Returns the cells of the comparison with Keras, in captions per second."""
    keras = [f"keras_{source}_{updates}" for source in ("recomputed", "cached") for updates in ("caption", "batch")]
    seconds = turns(["ours", *keras])
    speed = {name: batch * captions / elapsed for name, elapsed in seconds.items()}
    for name, value in speed.items():
        print(f"{name:24} {value:8.1f} captions/s", flush=True)
    cells = {}
    for source in ("recomputed", "cached"):
        peer = max(speed[name] for name in keras if source in name)
        cells[f"Keras, features {source}"] = {"ours": speed["ours"], "peer": peer, "ratio": speed["ours"] / peer}
    return cells


def utilisation(turns: Callable) -> dict[str, dict[str, float]]:
    """Returns the cell of the step of configs/flickr8k.py, in useful GFLOP/s."""
    products = ["product_numpy", "product_jnp"]
    seconds = turns(["flickr8k", *products])
    batches = flickr8k_batches()
    useful = sum(useful_operations(flickr8k(), FLICKR_VOCABULARY, batch) for batch in batches)
    ours, peak = useful / seconds["flickr8k"], 2 * MATRIX_SIZE**3 / min(seconds[name] for name in products)
    step, captions = seconds["flickr8k"] / BATCHES, batches[0]["tokens"][..., 0].size
    print(
        f"flickr8k: {useful / BATCHES / 1e9:.1f} useful GFLOP per step of {1e3 * step:.0f} ms "
        f"({captions / step:.0f} captions/s): {ours / 1e9:.0f} GFLOP/s of {peak / 1e9:.0f}; "
        f"model FLOP utilisation {ours / peak:.3f}",
        flush=True,
    )
    cell = {"ours": ours / 1e9, "peer": TARGET_UTILISATION * peak / 1e9, "utilisation": ours / peak}
    cell["ratio"] = cell["utilisation"] / TARGET_UTILISATION
    return {f"flickr8k, GFLOP/s against {TARGET_UTILISATION} of the peak": cell}


def main() -> None:
    """Runs the benchmark, or one side of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="keras,utilisation")
    parser.add_argument("--batch", type=int, default=32, help="images per step in the comparison with Keras")
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "processor"], help="clock to measure with")
    parser.add_argument("--serve", default="", help="run as the side of this name")
    options = parser.parse_args()
    sizes = [f"--batch={options.batch}", f"--captions={options.captions}"]
    if options.serve:
        untimed_runs = (
            10 if options.serve.startswith("product_") else 1
        )  # in practice steps and products run back to back
        serve(side_work(options.serve, options.batch, options.captions), untimed_runs=untimed_runs)
        return

    quiet = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", **HUGE_PAGES}

    def turns(names: list[str]) -> dict[str, float]:
        """Returns the median seconds of each side, by the selected clock."""
        commands = {name: (["benchmarks.frozen_training", f"--serve={name}", *sizes], quiet) for name in names}
        with start_sides(commands) as sides:
            return {name: getattr(elapsed, options.clock) for name, elapsed in alternate(sides, options.rounds).items()}

    cells: dict[str, dict[str, float]] = {}
    if "keras" in options.parts:
        cells |= against_keras(options.batch, options.captions, turns)
    if "utilisation" in options.parts:
        cells |= utilisation(turns)
    print_result("frozen_training", cells, "captions/s")


if __name__ == "__main__":
    main()

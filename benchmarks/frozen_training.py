"""Captions a second of training with a frozen image encoder, and how near its arithmetic is to the processor's limit.

    python -m benchmarks.frozen_training [--parts=keras,utilisation] [--batch=32] [--captions=5] [--clock=wall]

keras: the published Keras design (`benchmarks/peers/keras_published.py`) on TensorFlow, which runs EfficientNetB0 anew
in each epoch, and the same given its features, against ours reading the feature cache: one decoder layer, 512 wide, 512
in the feed-forward network, 2 heads, 10,000 tokens, captions of 25, images of 224 pixels, as many images and captions
in a step on both sides. Both forms of the design run, with an update for each caption and with one for the whole batch;
the faster one is the peer.

utilisation: the step of `configs/flickr8k.py` on stored features of stage_7. Useful operations a second over those of a
product of square matrices, by jnp or NumPy, whichever is faster. Useful are the multiplications and additions of the
matrix products, forwards and backwards, for tokens that are no pads and keys that they may look at; nothing else is
counted, neither norms, softmax, dropout nor the optimizer. The cell's ratio is utilisation over 0.4.

Captions have as many tokens as Flickr8k's (13.3 on average that are read to predict another, deviation 3.8), at random
from the vocabulary. Ours is the program that a run compiles (`caption_jax.training.program`), and its batches are put
on the device as those of a run. Float32. Each contestant has a process of its own, and they take turns, each of which
begins with work that does not count. Needs the bench extra. `--clock=processor` counts seconds of processor time, all
cores together, in place of wall time: on a machine with other work, that is what repeats. The last line is JSON; its
`ratio` is the worst of the cells'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.alternate import alternate, contest, print_result, serve
from benchmarks.peers.keras_published import Design
from caption_jax.runtime.process import HUGE_PAGES
from caption_jax.specs import RunSpec

MEAN, DEVIATION = 13.25, 3.84  # of the tokens that Flickr8k's captions are read up to, with a vocabulary of 4,000
SIDE, CELLS, CHANNELS = 224, 49, 1280
STAGE = (7, 7, 320)  # what stage_7 gives
FLICKR_VOCABULARY, FLICKR_BATCH, BATCHES, SIDE_OF_MATRICES = 3569, 32, 4, 2048
NEEDED = 0.4


def make_tokens(images: int, captions: int, length: int, vocabulary: int, seed: int) -> np.ndarray:
    """int32 [images, captions, length]: <s>, random tokens, </s>, pads."""
    random = np.random.default_rng(seed)
    read = np.clip(np.rint(random.normal(MEAN, DEVIATION, (images, captions))), 3, length - 1)[..., None]
    place = np.arange(length)
    tokens = random.integers(4, vocabulary, (images, captions, length))
    return np.where(place == 0, 0, np.where(place < read, tokens, np.where(place == read, 2, 1))).astype(np.int32)


def published_size() -> Any:
    """The config of our side beside Keras."""
    from caption_jax.config import default_config

    config, design = default_config(), Design()
    config.data.max_length = design.length
    config.data.feature_cache.stage = "head"
    config.model.decoder.update(layers=1, heads=2, width=design.width, feed_forward=design.feed_forward)
    config.optimizer.rules = _FROZEN
    return RunSpec.from_config(config)


def flickr8k() -> Any:
    """configs/flickr8k.py with all of the backbone frozen."""
    from caption_jax.configs import flickr8k

    with flickr8k.get_config().unlocked() as config:
        config.data.feature_cache.stage = "stage_7"
        config.optimizer.rules = _FROZEN
    return RunSpec.from_config(config)


_FROZEN = ((r"image_encoder/backbone/.*", {"lr": 0.0}), (r"(?!image_encoder/backbone/).*", {"lr": 1.0}))


def our_step(config: Any, vocabulary: int, batches: list[dict[str, np.ndarray]]) -> Callable[[], Any]:
    """A function that makes one update with each batch, as a run does."""
    import jax

    from caption_jax.parameters.freezing import phases
    from caption_jax.parameters.sharding import make_mesh
    from caption_jax.runs.description import ModelSettings, RunDescription
    from caption_jax.runs.initial_variables import init_variables
    from caption_jax.training.batch_placer import batch_placer
    from caption_jax.training.program import make_program
    from input_pipeline.images import Preprocessing

    settings = ModelSettings(vocabulary, config.data.max_length, {"padding": "same", "norm_epsilon": 1e-3})
    description = RunDescription(config, settings, Preprocessing(SIDE), vocabulary=None)  # no words are read
    mesh = make_mesh(config.mesh)
    program, place = make_program(description, mesh, steps=10_000), batch_placer(config, mesh)
    state = program.start(init_variables(description))
    ((_, frozen),) = phases(state.params, config.optimizer.rules)
    update = program.update(frozen)

    def steps() -> None:
        nonlocal state
        for batch in batches:
            state, metrics = update(state, place(batch), program.constants)
        if not np.isfinite(float(jax.block_until_ready(metrics)["loss"])):
            raise AssertionError("the loss is not finite")

    return steps


def our_batch(images: int, captions: int, config: Any, vocabulary: int, shape: tuple[int, ...], seed: int) -> dict:
    """A batch of stored features."""
    features = np.random.default_rng(seed).normal(size=(images, *shape)).astype(np.float16)
    tokens = make_tokens(images, captions, config.data.max_length, vocabulary, seed)
    return {"features": features, "tokens": tokens, "mask": np.ones(images, bool)}


def flickr8k_batches() -> list[dict[str, np.ndarray]]:
    """Several batches, as their tokens differ in number."""
    config = flickr8k()
    captions = config.data.captions_per_image
    return [our_batch(FLICKR_BATCH, captions, config, FLICKR_VOCABULARY, STAGE, seed) for seed in range(BATCHES)]


def useful_operations(config: Any, vocabulary: int, batch: dict[str, np.ndarray]) -> float:
    """Multiplications and additions of a step's matrix products, without those for pads and for keys out of sight.

    Backwards a product costs two, one for each factor's gradient. The last convolution is frozen and has no gradient;
    the projection of its output has one for its weights only.
    """
    decoder, slots = config.model.decoder, batch["features"].shape[1] * batch["features"].shape[2]
    width, images = decoder.width, len(batch["tokens"])
    read = (batch["tokens"][..., 1:] != 1).sum(-1)  # tokens of each caption that predict another
    tokens = read.sum()
    projections = tokens * (6 * width * width + 2 * width * decoder.feed_forward)
    looks = 2 * width * ((read * (read + 1) // 2).sum() + tokens * slots)
    memory = images * slots * 2 * width * width
    trained = decoder.layers * (projections + looks + memory) + tokens * width * vocabulary
    cells = images * slots * CHANNELS
    return 2.0 * (3 * trained + 2 * cells * width + cells * batch["features"].shape[-1])


def matrix_product(library: str) -> Callable[[], Any]:
    """A function that multiplies two square matrices, large enough to reach the processor's peak."""
    a, b = np.random.default_rng(0).normal(size=(2, SIDE_OF_MATRICES, SIDE_OF_MATRICES)).astype(np.float32)
    if library == "numpy":
        return lambda: a @ b
    import jax
    import jax.numpy as jnp

    product, x, y = jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(b)
    return lambda: product(x, y).block_until_ready()


def contestant(name: str, batch: int, captions: int) -> Callable[[], Any]:
    """The work of the contestant of that name."""
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
    """Cells of captions a second."""
    keras = [f"keras_{source}_{updates}" for source in ("recomputed", "cached") for updates in ("caption", "batch")]
    seconds = turns(["ours", *keras])
    speed = {name: batch * captions / taken for name, taken in seconds.items()}
    for name, value in speed.items():
        print(f"{name:24} {value:8.1f} captions/s", flush=True)
    cells = {}
    for source in ("recomputed", "cached"):
        peer = max(speed[name] for name in keras if source in name)
        cells[f"Keras, features {source}"] = {"ours": speed["ours"], "peer": peer, "ratio": speed["ours"] / peer}
    return cells


def utilisation(turns: Callable) -> dict[str, dict[str, float]]:
    """The cell of the step of configs/flickr8k.py, in useful operations a second."""
    products = ["product_numpy", "product_jnp"]
    seconds = turns(["flickr8k", *products])
    batches = flickr8k_batches()
    useful = sum(useful_operations(flickr8k(), FLICKR_VOCABULARY, batch) for batch in batches)
    ours, peak = useful / seconds["flickr8k"], 2 * SIDE_OF_MATRICES**3 / min(seconds[name] for name in products)
    step, captions = seconds["flickr8k"] / BATCHES, batches[0]["tokens"][..., 0].size
    print(
        f"flickr8k: {useful / BATCHES / 1e9:.1f} GFLOP useful in a step of {1e3 * step:.0f} ms "
        f"({captions / step:.0f} captions/s): {ours / 1e9:.0f} GFLOP/s of {peak / 1e9:.0f}; "
        f"model FLOP utilisation {ours / peak:.3f}",
        flush=True,
    )
    cell = {"ours": ours / 1e9, "peer": NEEDED * peak / 1e9, "ratio": ours / peak / NEEDED, "utilisation": ours / peak}
    return {f"flickr8k, GFLOP/s against {NEEDED} of the peak": cell}


def main() -> None:
    """Runs the benchmark, or serves a side of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="keras,utilisation")
    parser.add_argument("--batch", type=int, default=32, help="images of a step beside Keras")
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "processor"], help="seconds that are counted")
    parser.add_argument("--serve", default="", help="be the contestant of that name")
    options = parser.parse_args()
    sizes = [f"--batch={options.batch}", f"--captions={options.captions}"]
    if options.serve:
        uncounted = 10 if options.serve.startswith("product_") else 1  # steps and products follow each other in use
        serve(contestant(options.serve, options.batch, options.captions), uncounted=uncounted)
        return

    quiet = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", **HUGE_PAGES}

    def turns(names: list[str]) -> dict[str, float]:
        """Median seconds of each, by the clock that was chosen."""
        commands = {name: (["benchmarks.frozen_training", f"--serve={name}", *sizes], quiet) for name in names}
        with contest(commands) as sides:
            return {name: getattr(taken, options.clock) for name, taken in alternate(sides, options.rounds).items()}

    cells: dict[str, dict[str, float]] = {}
    if "keras" in options.parts:
        cells |= against_keras(options.batch, options.captions, turns)
    if "utilisation" in options.parts:
        cells |= utilisation(turns)
    print_result("frozen_training", cells, "captions/s")


if __name__ == "__main__":
    main()

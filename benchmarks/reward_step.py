"""Time of a training step on rewards, compared with cross-entropy and with the same step in PyTorch.

    python -m benchmarks.reward_step [--images=32] [--samples=5] [--clock=wall]

A step samples five captions per image, scores them with CIDEr-D against five references, and updates the decoder of
`configs/flickr8k.py` on stored features of stage_7, on the rewards and on the cross-entropy of the references. All
weights are random, except that captions end after each token with a probability of 1/16, so that the samples have as
many tokens as the references (12 on average, and up to 21).

cross_entropy: the step of `configs/flickr8k.py` with the same images and five references of each, compared with a
step on both losses. `ratio` is 4 times the time of the former divided by that of the latter.

torch: transformers' GPT-2 with cross-attention, of the same dimensions (`benchmarks/peers/transformers_reward.py`). It
samples all captions of a batch at once with a key/value cache, scores them with a CIDEr-D in Python, and computes the
gradient of both losses. It is compared with a step on both losses, which also computes the memory of the images.
`ratio` is the time of PyTorch divided by ours.

All implementations run in float32 in separate processes, which alternate. Requires the bench extra. `--clock=cpu`
measures CPU time summed over all cores instead of wall time, which is reproducible on a busy machine. The last line is
JSON, and `ratio` is the lowest of both comparisons.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.alternate import alternate, print_result, print_times, serve, start_sides
from benchmarks.conditions import Conditions
from benchmarks.frozen_training import STAGE_7_SHAPE, make_flickr8k_spec, make_training_steps
from benchmarks.reward_workload import make_captions, make_split, make_vocabulary
from caption_jax.runtime.process import MALLOC_SETTINGS, set_up_process

TARGET_MULTIPLE = 4  # longest acceptable time, in steps with cross-entropy
CAPTION_WEIGHT = 0.1  # of the cross-entropy, as in configs/flickr8k_reward.py
END_PROBABILITY = 1 / 16  # of </s> after each token


def make_steps(images: int, samples: int, losses: str) -> Callable[[], Any]:
    """Returns a function that performs one update.

    Args:
        images: images per step.
        samples: sampled captions per image.
        losses: "cross_entropy" or "both".
    """
    from caption_jax.objectives.sequence_reward import SequenceReward

    spec, split = make_flickr8k_spec(), make_split(images)
    vocabulary = make_vocabulary(split)
    tokens = np.stack([vocabulary.encode_batch(record.captions, spec.data.max_length) for record in split])
    batch = {
        "features": np.random.default_rng(0).normal(size=(images, *STAGE_7_SHAPE)).astype(np.float16),
        "tokens": tokens,
        "mask": np.ones(images, bool),
        "index": np.arange(images, dtype=np.int32),
    }
    if losses == "cross_entropy":
        return make_training_steps(spec, vocabulary.size, [batch])
    reward = SequenceReward(samples=samples)
    objective = dataclasses.replace(spec.objective, caption_weight=CAPTION_WEIGHT, terms={"reward": reward})
    spec, constants = dataclasses.replace(spec, objective=objective), {"reward": reward.prepare(split, vocabulary)}
    return make_training_steps(spec, vocabulary.size, [batch], constants, END_PROBABILITY)


def make_workload(name: str, images: int, samples: int) -> Callable[[], Any]:
    """Returns the function that the named child process times."""
    if name != "torch":
        set_up_process()  # like main.py; the environment of this process contains MALLOC_SETTINGS
        return make_steps(images, samples, name)
    from benchmarks.peers.transformers_reward import make_reward_step

    decoder, length = make_flickr8k_spec().model.decoder, make_flickr8k_spec().data.max_length - 1
    return make_reward_step(
        make_captions(images),
        decoder,
        samples=samples,
        tokens=length,
        caption_weight=CAPTION_WEIGHT,
        end_probability=END_PROBABILITY,
    )


def _compare(images: int, ours: float, peer: float) -> dict[str, float]:
    """Returns rates in images per second, and their ratio, from seconds per step."""
    return {"ours": images / ours, "peer": images / peer, "ratio": peer / ours}


def main() -> None:
    """Runs the benchmark, or one implementation as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32, help="images per step")
    parser.add_argument("--samples", type=int, default=5, help="sampled captions per image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="wall time or CPU time")
    parser.add_argument("--serve", default="", help="run this implementation as a child process")
    options = parser.parse_args()
    if options.serve:
        serve(make_workload(options.serve, options.images, options.samples), untimed_runs=1)
        return
    flags = [f"--images={options.images}", f"--samples={options.samples}"]
    environment = {"JAX_PLATFORMS": "cpu", **MALLOC_SETTINGS}
    conditions = Conditions()
    names = ("both", "cross_entropy", "torch")
    commands = {name: (["benchmarks.reward_step", f"--serve={name}", *flags], environment) for name in names}
    with start_sides(commands) as sides:
        seconds = alternate(sides, options.rounds, conditions)
    print_times(seconds, options.images, "images/s")
    elapsed = {name: getattr(times, options.clock) for name, times in seconds.items()}
    limit = TARGET_MULTIPLE * elapsed["cross_entropy"]
    comparisons = {
        f"{TARGET_MULTIPLE} steps with cross-entropy": _compare(options.images, elapsed["both"], limit),
        "torch": _compare(options.images, elapsed["both"], elapsed["torch"]),
    }
    print_result("reward_step", comparisons, "images/s", conditions)


if __name__ == "__main__":
    main()

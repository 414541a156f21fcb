"""Gain of beam search over greedy decoding, with a cross-tuned length penalty.

    python -m benchmarks.beam_gain WORKDIR [--split=val] [--beams=5] [--out=FILE] [--config.data.root=FOLDER]

The split is divided into two halves with alternating images. Each half is captioned with the penalty that has the
best CIDEr-D on the other half. The resulting captions of all images are compared with greedy captions by a paired
bootstrap. Both methods use the run's config for all other decoding settings, except that reranking is disabled. Images
are encoded only once, and the exponent of a penalty is an argument of the compiled beam search, so changing it does not
recompile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caption_jax.decoding import decode
from caption_jax.decoding.beam import EXPONENTS
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.metrics import compare, cross_tune, intervals, score, score_images
from caption_jax.runs.loading import load_weights
from caption_jax.runs.workdir import read_description
from input_pipeline.batches import eval_batches
from input_pipeline.sources import open_splits


class SplitCaptioner:
    """Captions a split with different decoding settings."""

    def __init__(self, workdir: str, split_name: str, root: str):
        self.description = read_description(workdir)
        data = self.description.spec.data
        data = dataclasses.replace(data, root=root or data.root)
        weights = load_weights(workdir)
        self.step, self.variables = weights.step, weights.variables
        self.split, self.model = open_splits(data)[split_name], self.description.model()
        self._batches = list(self._encode(data))
        self._compiled_functions: dict[str, Any] = {}

    def _encode(self, data: Any):
        preprocessing = self.description.preprocessing

        @jax.jit
        def encode(variables: Any, pixels: jax.Array) -> jax.Array:
            return encode_for_decoding(self.model, variables, pixels, None, self.description).memory

        for batch in eval_batches(self.split, preprocessing, self.description.vocabulary, data):
            yield encode(self.variables, batch["image"]), np.asarray(batch["index"])[np.asarray(batch["mask"])]

    def caption(self, settings: dict[str, Any]) -> dict[Any, str]:
        """Returns captions by image id, decoded with the settings of the run overridden by `settings`."""
        spec = dataclasses.replace(self.description.spec.decode, rerank_weight=0.0, **settings)
        static_spec = dataclasses.replace(spec, alpha=0.0)
        key = repr(static_spec)
        if key not in self._compiled_functions:

            def decode_batch(variables: Any, memory: jax.Array, alpha: jax.Array) -> jax.Array:
                traced_spec = dataclasses.replace(static_spec, alpha=alpha)
                return decode(self.model, variables, memory, traced_spec, vocabulary=self.description.vocabulary).tokens

            self._compiled_functions[key] = jax.jit(decode_batch)
        captions = {image_id: "" for image_id in self.split.image_ids}
        for memory, indices in self._batches:
            tokens = np.asarray(self._compiled_functions[key](self.variables, memory, jnp.float32(spec.alpha)))
            for row, index in enumerate(indices):
                captions[self.split.image_ids[int(index)]] = self.description.vocabulary.decode(tokens[row])
        return captions


def compute_cider(references: dict[Any, Any], captions: dict[Any, str], image_ids: list[Any]) -> float:
    """Returns the CIDEr-D of the captions of some of the images."""
    return score({i: references[i] for i in image_ids}, {i: captions[i] for i in image_ids})["CIDEr-D"]


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("--split", default="val")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--out", default="")
    parser.add_argument("--config.data.root", dest="root", default="")
    options = parser.parse_args()
    captioner = SplitCaptioner(options.workdir, options.split, options.root)
    references = dict(captioner.split.references)
    settings = [
        {"method": "beam", "num_beams": options.beams, "length_penalty": name, "alpha": alpha}
        for name, alphas in EXPONENTS.items()
        for alpha in alphas
    ]
    labels = [f"{setting['length_penalty']} {setting['alpha']}" for setting in settings]
    greedy_captions = captioner.caption({"method": "greedy"})
    beam_captions = []
    for label, setting in zip(labels, settings, strict=True):
        beam_captions.append(captioner.caption(setting))
        print(f"{label}: CIDEr-D {score(references, beam_captions[-1])['CIDEr-D']:.4f}")
    halves = list(references)[0::2], list(references)[1::2]
    ciders = [[compute_cider(references, captions, half) for captions in beam_captions] for half in halves]
    tuned_captions, chosen = cross_tune(beam_captions, halves, ciders)
    greedy_scores, beam_scores = score_images(references, greedy_captions), score_images(references, tuned_captions)
    gains = compare(greedy_scores, beam_scores)
    report = {
        "split": options.split,
        "images": len(references),
        "step": captioner.step,
        "chosen": [settings[i] for i in chosen],
        "halves": dict(zip(labels, map(list, zip(*ciders, strict=True)), strict=True)),
        "greedy": {name: vars(interval) for name, interval in intervals(greedy_scores).items()},
        "beam": {name: vars(interval) for name, interval in intervals(beam_scores).items()},
        "gain": {name: vars(gain) for name, gain in gains.items()},
    }
    for name, gain in gains.items():
        print(
            f"{name}: greedy {report['greedy'][name]['value']:.4f}, beam {report['beam'][name]['value']:.4f}, "
            f"gain {gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {gain.p_value:.4f}"
        )
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

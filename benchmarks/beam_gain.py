"""Gain of beam search over greedy decoding, with a cross-tuned length penalty.

    python -m benchmarks.beam_gain WORKDIR [--split=val] [--beams=5] [--out=FILE] [--config.data.root=FOLDER]

The split is divided into two halves (every other image). Each half is captioned with the penalty that has the best
CIDEr-D on the other half. The resulting captions of all images are compared with greedy captions by a paired
bootstrap. Both methods keep the other decoding settings of the run's config, except reranking. The images are encoded
once. The exponent of a penalty is an argument of the compiled search, so all exponents share one compilation.
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
from caption_jax.metrics import compare, cross_tuned, intervals, score, score_images
from caption_jax.runs.loading import load_weights
from caption_jax.runs.workdir import read_description
from input_pipeline.batches import eval_batches
from input_pipeline.sources import open_splits


class Decoder:
    """Captions a split with different decoding settings."""

    def __init__(self, workdir: str, split_name: str, root: str):
        self.description = read_description(workdir)
        data = self.description.spec.data
        data = dataclasses.replace(data, root=root or data.root)
        weights = load_weights(workdir)
        self.step, self.variables = weights.step, weights.variables
        self.split, self.model = open_splits(data)[split_name], self.description.model()
        self._batches = list(self._encode(data))
        self._compiled: dict[str, Any] = {}

    def _encode(self, data: Any):
        preprocessing = self.description.preprocessing

        @jax.jit
        def encode(variables: Any, pixels: jax.Array) -> jax.Array:
            return encode_for_decoding(self.model, variables, pixels, None, self.description).memory

        for batch in eval_batches(self.split, preprocessing, self.description.vocabulary, data):
            yield encode(self.variables, batch["image"]), np.asarray(batch["index"])[np.asarray(batch["mask"])]

    def captions(self, settings: dict[str, Any]) -> dict[Any, str]:
        """Returns image id -> caption, decoded with the run's config, overridden by `settings`."""
        spec = dataclasses.replace(self.description.spec.decode, rerank_weight=0.0, **settings)
        fixed = dataclasses.replace(spec, alpha=0.0)
        name = repr(fixed)
        if name not in self._compiled:

            def run(variables: Any, memory: jax.Array, alpha: jax.Array) -> jax.Array:
                vocabulary = self.description.vocabulary
                return decode(
                    self.model, variables, memory, dataclasses.replace(fixed, alpha=alpha), vocabulary=vocabulary
                ).tokens

            self._compiled[name] = jax.jit(run)
        result = {image_id: "" for image_id in self.split.image_ids}
        for memory, index in self._batches:
            tokens = np.asarray(self._compiled[name](self.variables, memory, jnp.float32(spec.alpha)))
            for row, position in enumerate(index):
                result[self.split.image_ids[int(position)]] = self.description.vocabulary.decode(tokens[row])
        return result


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("--split", default="val")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--out", default="")
    parser.add_argument("--config.data.root", dest="root", default="")
    options = parser.parse_args()
    decoder = Decoder(options.workdir, options.split, options.root)
    references = dict(decoder.split.references)
    settings = [
        {"method": "beam", "num_beams": options.beams, "length_penalty": name, "alpha": alpha}
        for name, alphas in EXPONENTS.items()
        for alpha in alphas
    ]
    greedy = decoder.captions({"method": "greedy"})
    results = []
    for setting in settings:
        results.append(decoder.captions(setting))
        cider = score(references, results[-1])["CIDEr-D"]
        print(f"{setting['length_penalty']} {setting['alpha']}: CIDEr-D {cider:.4f}")
    halves = list(references)[0::2], list(references)[1::2]
    scores = [
        [score({i: references[i] for i in half}, {i: captions[i] for i in half})["CIDEr-D"] for captions in results]
        for half in halves
    ]
    tuned, chosen = cross_tuned(results, halves, scores)
    greedy_scores, beam_scores = score_images(references, greedy), score_images(references, tuned)
    gains = compare(greedy_scores, beam_scores)
    report = {
        "split": options.split,
        "images": len(references),
        "step": decoder.step,
        "chosen": [settings[i] for i in chosen],
        "halves": {f"{s['length_penalty']} {s['alpha']}": [h[i] for h in scores] for i, s in enumerate(settings)},
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

"""Images scored per second, including tokenization, compared with pycocoevalcap (Java and Python).

    python -m benchmarks.metrics [--captions=captions.csv] [--images=5000] [--rounds=5]

Computes BLEU-1..4, ROUGE-L and CIDEr-D of 5,000 images with five references each. Results are medians over alternating
rounds; caches are cleared before each round. The scores of both implementations must agree within 1e-9. pycocoevalcap
requires Java. Captions are read from a CSV file (`image,caption`, as in Flickr8k) if it exists, and are otherwise
generated from rendered scenes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import shutil
import sys
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from benchmarks.alternate import Seconds, take_median, time_call
from benchmarks.conditions import Conditions
from caption_jax.metrics import score
from caption_jax.metrics.ptb import clear_cache, tokenize_all
from input_pipeline.sources.shapes_dataset.scenes import generate_scenes

References = dict[int, list[str]]
Hypotheses = dict[int, str]
DEVELOPMENT_CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k" / "captions.csv"


def read_references(path: Path | None, images: int) -> References:
    """Returns five captions per image: those in the CSV file at `path`, or captions of rendered scenes."""
    if path is None:
        scenes = itertools.islice(generate_scenes(0), images)
        return {image: list(scene.captions()) for image, scene in enumerate(scenes)}
    by_name: dict[str, list[str]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_name.setdefault(row["image"], []).append(row["caption"])
    if len(by_name) < images:
        sys.exit(f"{path} has captions for only {len(by_name)} images; --images must be at most {len(by_name)}")
    return {image: captions[:5] for image, captions in enumerate(itertools.islice(by_name.values(), images))}


def make_hypotheses(references: References) -> Hypotheses:
    """Returns one reference caption per image with random words replaced, about as accurate as a captioner's output."""
    rng = random.Random(0)
    words = [word for captions in itertools.islice(references.values(), 500) for word in captions[0].split()]
    return {
        image: " ".join(rng.choice(words) if rng.random() < 0.4 else word for word in rng.choice(captions).split())
        for image, captions in references.items()
    }


def score_with_ours(references: References, hypotheses: Hypotheses) -> dict[str, float]:
    """Computes all metrics with `caption_jax.metrics`."""
    clear_cache()
    return score(references, hypotheses)


def score_with_pycocoevalcap(references: References, hypotheses: Hypotheses) -> dict[str, float]:
    """Computes all metrics with pycocoevalcap, in the same way as its `COCOEvalCap`."""
    gts = tokenize_with_pycocoevalcap(references)
    res = tokenize_with_pycocoevalcap({image: [caption] for image, caption in hypotheses.items()})
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu, start=1)}
    return {**scores, "ROUGE-L": Rouge().compute_score(gts, res)[0], "CIDEr-D": Cider().compute_score(gts, res)[0]}


def tokenize_with_pycocoevalcap(captions: dict[int, list[str]]) -> dict[int, list[str]]:
    """Returns the captions of each image, tokenized by the Java tokenizer."""
    return PTBTokenizer().tokenize({image: [{"caption": text} for text in texts] for image, texts in captions.items()})


def time_tokenization(references: References, hypotheses: Hypotheses) -> tuple[Seconds, Seconds]:
    """Returns the times of tokenization, (ours, peer)."""
    references_list = [caption for captions in references.values() for caption in captions]
    hypotheses_list = list(hypotheses.values())
    clear_cache()
    our_seconds, _ = time_call(lambda: (tokenize_all(references_list), tokenize_all(hypotheses_list)))
    peer_seconds, _ = time_call(
        lambda: (
            tokenize_with_pycocoevalcap({i: [caption] for i, caption in enumerate(references_list)}),
            tokenize_with_pycocoevalcap({i: [caption] for i, caption in enumerate(hypotheses_list)}),
        )
    )
    return our_seconds, peer_seconds


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--captions", type=Path, default=DEVELOPMENT_CAPTIONS if DEVELOPMENT_CAPTIONS.is_file() else None
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if shutil.which("java") is None:
        sys.exit("the tokenizer of pycocoevalcap requires Java: install it and make sure that `java` is on the PATH")
    conditions = Conditions()
    references = read_references(options.captions, options.images)
    hypotheses = make_hypotheses(references)
    times: dict[str, list[Seconds]] = {"ours": [], "peer": []}
    for number in range(options.rounds):
        with conditions.measured():
            ours, actual = time_call(score_with_ours, references, hypotheses)
            peer, expected = time_call(score_with_pycocoevalcap, references, hypotheses)
        difference = max(abs(actual[name] - value) for name, value in expected.items())
        if not difference <= 1e-9:
            sys.exit(f"the scores differ by {difference}: ours {actual}, peer {expected}")
        times["ours"].append(ours)
        times["peer"].append(peer)
        print(f"round {number + 1}: ours {_describe(ours)}, peer {_describe(peer)}; scores agree within "
              f"{difference:.1e}", flush=True)  # fmt: skip
    tokenization = time_tokenization(references, hypotheses)
    print(f"tokenization: ours {_describe(tokenization[0])}, peer {_describe(tokenization[1])}")
    ours, peer = take_median(times["ours"]), take_median(times["peer"])
    print(
        json.dumps(
            {
                "name": "metrics",
                "ratio": round(peer.wall / ours.wall, 2),
                "ours": round(options.images / ours.wall, 1),
                "peer": round(options.images / peer.wall, 1),
                "unit": "images/s",
                **conditions.report(),
                "cells": {
                    "cpu_ratio": round(peer.cpu / ours.cpu, 2),
                    "seconds_ours": [round(elapsed.wall, 3) for elapsed in times["ours"]],
                    "seconds_peer": [round(elapsed.wall, 3) for elapsed in times["peer"]],
                    "cpu_seconds_ours": [round(elapsed.cpu, 3) for elapsed in times["ours"]],
                    "cpu_seconds_peer": [round(elapsed.cpu, 3) for elapsed in times["peer"]],
                    "tokenization_seconds_ours": round(tokenization[0].wall, 3),
                    "tokenization_seconds_peer": round(tokenization[1].wall, 3),
                },
            }
        )
    )


def _describe(elapsed: Seconds) -> str:
    return f"{elapsed.wall:.2f} s (CPU {elapsed.cpu:.2f} s)"


if __name__ == "__main__":
    main()

"""A scored evaluation of the captions of three images, made without a model."""

from __future__ import annotations

import numpy as np

from caption_jax.evaluation.evaluator import Evaluation
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation, score_evaluation

REFERENCES = {
    "1.png": ["A dog runs on the grass.", "a brown dog runs"],
    "2.png": ["two cats sit on a mat", "a pair of cats on a mat"],
    "3.png": ["a man rides a horse", "somebody on a horse"],
}
CAPTIONS = {"1.png": "a dog runs on the grass", "2.png": "a cat with a", "3.png": ""}


def make_scored_evaluation(
    captions: dict[str, str] = CAPTIONS, references: dict[str, list[str]] = REFERENCES, *, java: bool = False
) -> ScoredEvaluation:
    """Returns a scored evaluation of the captions. The third image is unreadable."""
    readable = list(captions)[:2]
    protocol = {
        "split": "val",
        "images": len(captions),
        "unreadable_images": 1,
        "image_input": "real",
        "tokenization": "PTB",
        "metrics": "ports, equal to pycocoevalcap",
        "document_frequencies": "the scored references",
        "decode": {"method": "beam", "num_beams": 3},
        "step": 1200,
        "device": "1 x cpu",
        "wall_seconds": 3.2,
    }
    evaluation = Evaluation(
        metrics={"CIDEr-D": 1.5, "BLEU-4": 0.25, "loss": 2.5},
        captions=captions,
        tokens={image_id: np.array([5, 6, 2]) for image_id in readable},
        log_probs=dict.fromkeys(readable, -1.0),
        unreadable={"3.png": "the file is empty"},
        protocol=protocol,
    )
    return score_evaluation(evaluation, references, ["a dog runs on the grass"], java=java)

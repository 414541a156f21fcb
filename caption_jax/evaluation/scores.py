"""The one function that scores captions, and the protocol that says how."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

from caption_jax.evaluation.results import check_image_set

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def score(
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
) -> dict[str, float]:
    """Scores one caption an image against its references.

    Args:
        references: image id -> one or more captions.
        hypotheses: image id -> the caption to judge; the same images.

    Returns:
        Metric name -> value: "BLEU-1" to "BLEU-4" and "ROUGE-L" in [0, 1], "CIDEr-D" unscaled (as COCO's tools print
        it), "exact_match" the share of captions that equal a reference word for word.

    Raises:
        ImageSetError: the two are not about the same images; the difference is listed.
        ValueError: there are no images, or an image has no reference.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    check_image_set(references, hypotheses)
    if not references:
        raise ValueError("there are no images to score")
    bare = [image_id for image_id, captions in references.items() if not captions]
    if bare:
        raise ValueError(f"{len(bare)} images have no reference caption, the first is {bare[0]!r}")
    gts = {image_id: [_words(caption) for caption in captions] for image_id, captions in references.items()}
    res = {image_id: [_words(hypotheses[image_id])] for image_id in references}
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    exact = sum(bool(res[image_id][0]) and res[image_id][0] in gts[image_id] for image_id in gts)
    return {
        **{f"BLEU-{n}": float(value) for n, value in enumerate(bleu, start=1)},
        "ROUGE-L": float(Rouge().compute_score(gts, res)[0]),
        "CIDEr-D": float(Cider().compute_score(gts, res)[0]),
        "exact_match": exact / len(gts),
    }


def protocol() -> dict[str, str]:
    """How `score` gets its numbers, to be kept with them."""
    return {
        "tokenization": "lower-cased words (letters, digits, inner apostrophes); punctuation dropped; not PTB",
        "metrics": "pycocoevalcap 1.2 Python scorers; CIDEr-D document frequencies from the scored references",
    }


def _words(caption: str) -> str:
    return " ".join(_WORD.findall(caption.lower()))

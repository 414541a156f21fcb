"""The one function that scores captions, and the protocol that says how."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from caption_jax.metrics.bleu import bleu, bleu_statistics
from caption_jax.metrics.cider import DocumentFrequencies, cider_d
from caption_jax.metrics.ngrams import LONGEST, count_ngrams
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.metrics.results import check_image_set
from caption_jax.metrics.rouge import rouge_l
from input_pipeline.errors import DataError

_BLEU = tuple(f"BLEU-{n}" for n in range(1, LONGEST + 1))


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Scores of each image, and what makes the corpus's out of them.

    Attributes:
        image_ids: the images, in the order of all arrays.
        values: metric name -> one value an image. For BLEU these are the scores of the image by itself; the corpus's is
            not their mean.
        bleu_statistics: see `bleu.bleu_statistics`.
    """

    image_ids: tuple[Hashable, ...]
    values: dict[str, Float[np.ndarray, " images"]]
    bleu_statistics: Int[np.ndarray, "images 10"]

    def corpus(self) -> dict[str, float]:
        """Metric name -> value over all images."""
        of_corpus = dict(zip(_BLEU, bleu(self.bleu_statistics.sum(0)), strict=True))
        return {name: float(of_corpus.get(name, values.mean())) for name, values in self.values.items()}


def mean_over_runs(runs: Sequence[ImageScores]) -> ImageScores:
    """Scores of a system that was trained several times, with other seeds say: each image's mean over its captions.

    Two systems are then compared image by image (`compare`) without the luck of a single run. BLEU's counts are summed,
    as if each image stood in the corpus once a run.

    Raises:
        ValueError: there is no run, or they are not about the same images in the same order.
    """
    if not runs or any(run.image_ids != runs[0].image_ids for run in runs):
        raise ValueError("the runs have to be about the same images in the same order, and there has to be one")
    values = {name: np.mean([run.values[name] for run in runs], axis=0) for name in runs[0].values}
    return ImageScores(runs[0].image_ids, values, np.sum([run.bleu_statistics for run in runs], axis=0))


def score(
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
    frequencies: DocumentFrequencies | None = None,
) -> dict[str, float]:
    """Scores one caption an image against its references, as COCO's tools do; `protocol()` says how.

    Args:
        references: image id -> one or more captions, as people wrote them.
        hypotheses: image id -> the caption to judge; the same images.
        frequencies: for CIDEr-D, of a corpus; None for those of the references here.

    Returns:
        Metric name -> value: "BLEU-1" to "BLEU-4" and "ROUGE-L" in [0, 1], "CIDEr-D" unscaled (as COCO's tools print
        it), "exact_match" the share of captions that equal a reference word for word.

    Raises:
        ImageSetError: the two are not about the same images; the difference is listed.
        DataError: there are no images, or an image has no reference.
    """
    return score_images(references, hypotheses, frequencies).corpus()


def score_images(
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
    frequencies: DocumentFrequencies | None = None,
) -> ImageScores:
    """As `score`, for each image: for intervals, comparisons, and a look at the best and the worst."""
    tokenized_references, tokenized_hypotheses = tokenize_pair(references, hypotheses)
    image_ids = tuple(references)
    per_image = [tokenized_references[image_id] for image_id in image_ids]
    candidates = [tokenized_hypotheses[image_id] for image_id in image_ids]
    flat = [caption for captions in per_image for caption in captions]
    counted = count_ngrams(flat + candidates)
    images = np.arange(len(per_image))
    image_of = np.concatenate([np.repeat(images, list(map(len, per_image))), images])
    statistics = bleu_statistics(counted, len(flat), image_of)
    values = dict(zip(_BLEU, bleu(statistics).T, strict=True))
    pairs = list(zip(candidates, per_image, strict=True))
    values["ROUGE-L"] = np.array([rouge_l(candidate, captions) for candidate, captions in pairs])
    values["CIDEr-D"] = cider_d(counted, len(flat), image_of, frequencies)
    exact = [candidate != "" and candidate in captions for candidate, captions in pairs]
    values["exact_match"] = np.array(exact, float)
    return ImageScores(image_ids, values, statistics)


def tokenize_pair(
    references: Mapping[Hashable, Sequence[str]], hypotheses: Mapping[Hashable, str]
) -> tuple[dict[Hashable, list[str]], dict[Hashable, str]]:
    """Tokenizes references and hypotheses, each as one file in the order of `references`.

    Raises:
        ImageSetError: the two are not about the same images; the difference is listed.
        DataError: there are no images, or an image has no reference.
    """
    check_image_set(references, hypotheses)
    if not references:
        raise DataError("there are no images to score")
    bare = [image_id for image_id, captions in references.items() if not captions]
    if bare:
        raise DataError(f"{len(bare)} images have no reference caption, the first is {bare[0]!r}")
    tokens = iter(tokenize_all([caption for captions in references.values() for caption in captions]))
    tokenized = {image_id: [next(tokens) for _ in captions] for image_id, captions in references.items()}
    candidates = tokenize_all([hypotheses[image_id] for image_id in references])
    return tokenized, dict(zip(references, candidates, strict=True))


def protocol(frequencies: DocumentFrequencies | None = None) -> dict[str, str]:
    """How `score` gets its numbers, to be kept with them."""
    source = f"a corpus of {frequencies.images} images" if frequencies else "the scored references"
    return {
        "tokenization": "PTB as COCO's tools (CoreNLP 3.4.1 PTBTokenizer, lower case, punctuation removed), own port",
        "metrics": "own BLEU, ROUGE-L and CIDEr-D, equal to pycocoevalcap 1.2",
        "document_frequencies": source,
    }

"""Scores captions against references, and describes the evaluation protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from caption_jax.metrics.bleu import bleu, bleu_statistics
from caption_jax.metrics.cider import DocumentFrequencies, cider_d
from caption_jax.metrics.ngrams import MAX_ORDER, count_ngrams
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.metrics.results import check_image_set
from caption_jax.metrics.rouge import rouge_l
from input_pipeline.errors import DataError

_BLEU = tuple(f"BLEU-{n}" for n in range(1, MAX_ORDER + 1))


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Per-image scores, and the statistics needed for corpus scores.

    Attributes:
        image_ids: ids of the images, in the order of all arrays.
        values: metric name -> one value per image. BLEU values are sentence-level scores, so their mean is not corpus
            BLEU.
        bleu_statistics: see `bleu.bleu_statistics`.
    """

    image_ids: tuple[Hashable, ...]
    values: dict[str, Float[np.ndarray, " images"]]
    bleu_statistics: Int[np.ndarray, "images 10"]

    def corpus(self) -> dict[str, float]:
        """Returns the corpus scores: metric name -> value over all images."""
        corpus_bleu = dict(zip(_BLEU, bleu(self.bleu_statistics.sum(0)), strict=True))
        return {name: float(corpus_bleu.get(name, values.mean())) for name, values in self.values.items()}


def mean_over_runs(runs: Sequence[ImageScores]) -> ImageScores:
    """Averages the per-image scores of several runs of one system, for example with different seeds.

    This reduces the variance between runs when two systems are compared with `compare`. BLEU statistics are summed, as
    if each image occurred in the corpus once per run.

    Raises:
        ValueError: `runs` is empty, or the runs do not cover the same images in the same order.
    """
    if not runs or any(run.image_ids != runs[0].image_ids for run in runs):
        raise ValueError("at least one run is required, and all runs must cover the same images in the same order")
    values = {name: np.mean([run.values[name] for run in runs], axis=0) for name in runs[0].values}
    return ImageScores(runs[0].image_ids, values, np.sum([run.bleu_statistics for run in runs], axis=0))


def score(
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
    frequencies: DocumentFrequencies | None = None,
) -> dict[str, float]:
    """Scores one caption per image against its references, like COCO's tools; see `protocol` for the details.

    Args:
        references: image id -> one or more untokenized captions.
        hypotheses: image id -> generated caption, for the same images.
        frequencies: document frequencies of a corpus for CIDEr-D; computed from `references` if None.

    Returns:
        Metric name -> value: "BLEU-1" to "BLEU-4" and "ROUGE-L" in [0, 1]; "CIDEr-D" in [0, 10], as in COCO's tools;
        "exact_match", the fraction of captions that equal a reference word for word.

    Raises:
        TypeError: an argument is not a mapping, the references of an image are a single string, or a caption is not a
            string.
        ImageSetError: references and hypotheses cover different images; the message lists the difference.
        DataError: there are no images, or an image has no reference.
    """
    return score_images(references, hypotheses, frequencies).corpus()


def score_images(
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
    frequencies: DocumentFrequencies | None = None,
) -> ImageScores:
    """Computes the scores of `score` per image, for intervals, comparisons and error analysis."""
    tokenized_references, tokenized_hypotheses = tokenize_pair(references, hypotheses)
    image_ids = tuple(references)
    image_references = [tokenized_references[image_id] for image_id in image_ids]
    image_hypotheses = [tokenized_hypotheses[image_id] for image_id in image_ids]
    all_references = [caption for captions in image_references for caption in captions]
    ngrams = count_ngrams(all_references + image_hypotheses)
    indices = np.arange(len(image_ids))
    image_index = np.concatenate([np.repeat(indices, list(map(len, image_references))), indices])
    statistics = bleu_statistics(ngrams, len(all_references), image_index)
    values = dict(zip(_BLEU, bleu(statistics).T, strict=True))
    pairs = list(zip(image_hypotheses, image_references, strict=True))
    values["ROUGE-L"] = np.array([rouge_l(hypothesis, captions) for hypothesis, captions in pairs])
    values["CIDEr-D"] = cider_d(ngrams, len(all_references), image_index, frequencies)
    exact_matches = [hypothesis != "" and hypothesis in captions for hypothesis, captions in pairs]
    values["exact_match"] = np.array(exact_matches, float)
    return ImageScores(image_ids, values, statistics)


def tokenize_pair(
    references: Mapping[Hashable, Sequence[str]], hypotheses: Mapping[Hashable, str]
) -> tuple[dict[Hashable, list[str]], dict[Hashable, str]]:
    """Tokenizes references and hypotheses as the lines of two files, in the order of `references`.

    Raises:
        TypeError, ImageSetError, DataError: see `score`.
    """
    _check_types(references, hypotheses)
    check_image_set(references, hypotheses)
    if not references:
        raise DataError("there are no images to score")
    unreferenced = [image_id for image_id, captions in references.items() if not captions]
    if unreferenced:
        raise DataError(f"{len(unreferenced)} images have no reference caption; the first is {unreferenced[0]!r}")
    tokenized = iter(tokenize_all([caption for captions in references.values() for caption in captions]))
    tokenized_references = {image_id: [next(tokenized) for _ in captions] for image_id, captions in references.items()}
    tokenized_hypotheses = tokenize_all([hypotheses[image_id] for image_id in references])
    return tokenized_references, dict(zip(references, tokenized_hypotheses, strict=True))


def _check_types(references: Any, hypotheses: Any) -> None:
    """Raises TypeError for arguments that would otherwise be scored as if they were something else.

    A string is also a sequence of strings, so a caption passed instead of a list would be scored as one reference per
    letter.
    """
    expected = {"references": "{1: ['a dog', 'a brown dog']}", "hypotheses": "{1: 'a dog'}"}
    for name, captions in (("references", references), ("hypotheses", hypotheses)):
        if not isinstance(captions, Mapping):
            kind = type(captions).__name__
            raise TypeError(f"{name} must be a mapping with image ids as keys, such as {expected[name]}, not a {kind}")
    for image_id, captions in references.items():
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            raise TypeError(f"references[{image_id!r}] is {captions!r}; it must be a list of captions")
        for caption in captions:
            _check_caption(caption, f"references[{image_id!r}]", "contains")
    for image_id, caption in hypotheses.items():
        _check_caption(caption, f"hypotheses[{image_id!r}]", "is")


def _check_caption(caption: Any, name: str, verb: str) -> None:
    if not isinstance(caption, str):
        raise TypeError(f"{name} {verb} {caption!r}; a caption must be a string")


def protocol(frequencies: DocumentFrequencies | None = None) -> dict[str, str]:
    """Describes the evaluation protocol of `score`, to be stored with the scores."""
    source = f"a corpus of {frequencies.images} images" if frequencies else "the scored references"
    return {
        "tokenization": "port of COCO's PTB tokens (CoreNLP 3.4.1 PTBTokenizer, lower case, punctuation removed)",
        "metrics": "ports of BLEU, ROUGE-L and CIDEr-D, equal to pycocoevalcap 1.2",
        "document_frequencies": source,
    }

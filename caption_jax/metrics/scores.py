"""Scores captions against references, and describes the evaluation protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from caption_jax.metrics.argument_checks import check_hypotheses, check_instance, check_references
from caption_jax.metrics.bleu import bleu, bleu_statistics
from caption_jax.metrics.cider import DocumentFrequencies, cider_d
from caption_jax.metrics.ngrams import MAX_ORDER, count_ngrams
from caption_jax.metrics.results import select_images
from caption_jax.metrics.rouge import rouge_l
from caption_jax.metrics.tokenization import TOKENIZERS, check_tokenizer, tokenize_captions, warn_if_unsuitable
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
        TypeError: a run is not the result of `score_images`.
        ValueError: `runs` is empty, or the runs do not cover the same images in the same order.
    """
    for run in runs:
        check_instance("each run", run, ImageScores, "score_images")
    if not runs or any(run.image_ids != runs[0].image_ids for run in runs):
        raise ValueError("at least one run is required, and all runs must cover the same images in the same order")
    values = {name: np.mean([run.values[name] for run in runs], axis=0) for name in runs[0].values}
    return ImageScores(runs[0].image_ids, values, np.sum([run.bleu_statistics for run in runs], axis=0))


def score(
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
    frequencies: DocumentFrequencies | None = None,
    *,
    tokenizer: str = "ptb",
    subset: str = "all",
) -> dict[str, float]:
    """Scores one caption per image against its references, like COCO's tools; see `protocol` for the details.

    Args:
        references: image id -> one or more untokenized captions.
        hypotheses: image id -> generated caption, for the same images.
        frequencies: document frequencies of a corpus for CIDEr-D; computed from the scored references if None. The
            CIDEr-D of a single image is then 0, because log(1 image / 1 image with the n-gram) = 0.
        tokenizer: "ptb", the tokenizer of COCO's tools, or "characters", for languages without spaces between words.
        subset: "all" requires a caption for each image with references; "common" scores the images that have both.

    Returns:
        Metric name -> value: "BLEU-1" to "BLEU-4" and "ROUGE-L" in [0, 1]; "CIDEr-D" in [0, 10], as in COCO's tools;
        "exact_match", the fraction of captions that equal a reference word for word.

    Raises:
        TypeError: an argument is not a mapping, the references of an image are a single string, or a caption is not a
            string.
        ImageSetError: references and hypotheses cover different images and `subset` is "all"; the message lists the
            difference.
        DataError: there are no images, or an image has no reference.
        ConfigError: `tokenizer` or `subset` is unknown.

    Warns:
        TokenizationWarning: the PTB tokenizer does not find words in most of the captions.
    """
    return score_images(references, hypotheses, frequencies, tokenizer=tokenizer, subset=subset).corpus()


def score_images(
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
    frequencies: DocumentFrequencies | None = None,
    *,
    tokenizer: str = "ptb",
    subset: str = "all",
) -> ImageScores:
    """Computes the scores of `score` per image, for intervals, comparisons and error analysis."""
    if frequencies is not None:
        check_instance("frequencies", frequencies, DocumentFrequencies, "DocumentFrequencies.load")
    tokenized_references, tokenized_hypotheses = tokenize_pair(
        references, hypotheses, tokenizer=tokenizer, subset=subset
    )
    image_ids = tuple(tokenized_references)
    image_references = list(tokenized_references.values())
    image_hypotheses = list(tokenized_hypotheses.values())
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
    references: Mapping[Hashable, Sequence[str]],
    hypotheses: Mapping[Hashable, str],
    *,
    tokenizer: str = "ptb",
    subset: str = "all",
) -> tuple[dict[Hashable, list[str]], dict[Hashable, str]]:
    """Tokenizes references and hypotheses as the lines of two files, in the order of `references`.

    Raises:
        TypeError, ImageSetError, DataError, ConfigError: see `score`.
    """
    check_references(references)
    check_hypotheses(hypotheses)
    check_tokenizer(tokenizer)
    image_ids = select_images(references, hypotheses, subset=subset)
    if not image_ids:
        raise DataError("there are no images to score")
    unreferenced = [image_id for image_id in image_ids if not references[image_id]]
    if unreferenced:
        raise DataError(f"{len(unreferenced)} images have no reference caption; the first is {unreferenced[0]!r}")
    reference_captions = [caption for image_id in image_ids for caption in references[image_id]]
    hypothesis_captions = [hypotheses[image_id] for image_id in image_ids]
    reference_tokens = tokenize_captions(reference_captions, tokenizer)
    hypothesis_tokens = tokenize_captions(hypothesis_captions, tokenizer)
    if tokenizer == "ptb":
        warn_if_unsuitable(reference_captions + hypothesis_captions, reference_tokens + hypothesis_tokens)
    tokens = iter(reference_tokens)
    tokenized_references = {image_id: [next(tokens) for _ in references[image_id]] for image_id in image_ids}
    return tokenized_references, dict(zip(image_ids, hypothesis_tokens, strict=True))


def explain_zero_cider(scores: ImageScores, frequencies: DocumentFrequencies | None = None) -> str:
    """Returns why CIDEr-D is 0 if that is due to the number of images rather than to the captions, otherwise "".

    CIDEr-D weights an n-gram by log(images / images whose references contain it). With the scored references as corpus,
    this is log(1 / 1) = 0 for every n-gram of a single image, and for an n-gram that all of a few images have.
    """
    count, has_matches = len(scores.image_ids), scores.bleu_statistics[:, 2 + MAX_ORDER].any()
    if frequencies is not None or scores.values["CIDEr-D"].any() or not (count == 1 or has_matches):
        return ""
    if count == 1:
        weight = "log(images / images that have it) = log(1/1) = 0"
        reason = f"CIDEr-D is always 0 for a single image, because the weight of each n-gram is {weight}"
    else:
        images = f"the references of all {count} images"
        reason = f"CIDEr-D is 0 because each matching n-gram occurs in {images}: its weight is log({count}/{count}) = 0"
    return f"{reason}: score more images, or use the document frequencies of a corpus"


def protocol(
    frequencies: DocumentFrequencies | None = None, *, tokenizer: str = "ptb", scored_images: str = ""
) -> dict[str, str]:
    """Describes the evaluation protocol of `score`, to be stored with the scores.

    Args:
        frequencies: as in `score`.
        tokenizer: as in `score`.
        scored_images: the result of `describe_subset` for `subset="common"`; "" if all images are scored.
    """
    check_tokenizer(tokenizer)
    source = f"a corpus of {frequencies.images} images" if frequencies else "the scored references"
    metrics = "ports of BLEU, ROUGE-L and CIDEr-D, equal to pycocoevalcap 1.2"
    if tokenizer != "ptb":
        metrics += " on these tokens; not comparable with scores on COCO's tokens"
    return {
        "tokenization": TOKENIZERS[tokenizer],
        "metrics": metrics,
        "document_frequencies": source,
        **({"scored_images": scored_images} if scored_images else {}),
    }

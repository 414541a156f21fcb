"""BLEU, ROUGE-L and CIDEr-D compared with pycocoevalcap's Python scorers, on the same tokens."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from reference_tokenizer import read_captions

from caption_jax.metrics import score, score_images
from caption_jax.metrics.cider import DocumentFrequencies
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.metrics.scores import tokenize_pair


def compute_reference_scores(references, hypotheses) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Computes pycocoevalcap's scores on our tokens, for the corpus and per image."""
    reference_tokens, candidates = tokenize_pair(references, hypotheses)
    candidate_tokens = {image_id: [candidate] for image_id, candidate in candidates.items()}
    bleu, bleu_images = Bleu(4).compute_score(reference_tokens, candidate_tokens, verbose=0)
    rouge, rouge_images = Rouge().compute_score(reference_tokens, candidate_tokens)
    cider, cider_images = Cider().compute_score(reference_tokens, candidate_tokens)
    corpus = {**{f"BLEU-{n + 1}": bleu[n] for n in range(4)}, "ROUGE-L": rouge, "CIDEr-D": cider}
    images = {**{f"BLEU-{n + 1}": bleu_images[n] for n in range(4)}, "ROUGE-L": rouge_images, "CIDEr-D": cider_images}
    return corpus, images


def assert_matches_pycocoevalcap(references, hypotheses) -> None:
    actual = score_images(references, hypotheses)
    corpus, images = compute_reference_scores(references, hypotheses)
    for name, expected in corpus.items():
        assert math.isclose(actual.corpus()[name], expected, rel_tol=0, abs_tol=1e-9), name
        np.testing.assert_allclose(actual.values[name], images[name], rtol=0, atol=1e-9, err_msg=name)


def make_random_captions(images: int, seed: int) -> tuple[dict, dict]:
    """Returns one to six references per image, and hypotheses that are similar, dissimilar, empty or a single word."""
    rng = random.Random(seed)
    words = ["a", "the", "dog", "cat", "man", "red", "runs", "on", "in", "grass", ".", ",", "two", "isn't"]
    references, hypotheses = {}, {}
    for image_id in range(images):
        base = rng.choices(words, k=rng.randint(1, 14))
        references[image_id] = [
            " ".join(word for word in base if rng.random() < 0.8) or "dog" for _ in range(rng.randint(1, 6))
        ]
        kind = rng.random()
        hypotheses[image_id] = (
            ""
            if kind < 0.05
            else rng.choice(words)
            if kind < 0.1
            else "zebra giraffe elephant lion tiger"
            if kind < 0.15
            else rng.choice(references[image_id])
            if kind < 0.25
            else " ".join(rng.sample(base, len(base)))
            if kind < 0.5
            else " ".join(rng.choices(words, k=rng.randint(1, 20)))
        )
    return references, hypotheses


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_of_random_captions_match_pycocoevalcap(seed):
    assert_matches_pycocoevalcap(*make_random_captions(600, seed))


@pytest.mark.slow
def test_scores_of_photographs_match_pycocoevalcap(shared_data):
    captions = read_captions(shared_data)[:15000]
    # The first caption of each photograph is scored against the other four. Every third photograph has the caption of
    # another one.
    references = {image: captions[5 * image + 1 : 5 * image + 5] for image in range(3000)}
    hypotheses = {image: captions[5 * (image if image % 3 else (image + 1) % 3000)] for image in range(3000)}
    assert_matches_pycocoevalcap(references, hypotheses)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.text("ab .", max_size=12), min_size=1, max_size=4), st.text("ab .", max_size=12)),
        min_size=1,
        max_size=4,
    )
)
def test_scores_of_short_captions_match_pycocoevalcap(pairs):
    references = {image: captions for image, (captions, _) in enumerate(pairs)}
    if not any(tokenize_all([caption])[0] for captions in references.values() for caption in captions):
        return  # pycocoevalcap fails if no reference contains a word, as in the next test
    assert_matches_pycocoevalcap(references, {image: hypothesis for image, (_, hypothesis) in enumerate(pairs)})


def test_references_without_words_score_zero():
    assert score({1: ["."]}, {1: "a dog"})["CIDEr-D"] == 0


def test_document_frequencies_default_to_the_references(tmp_path):
    references, hypotheses = make_random_captions(200, 3)
    tokens, _ = tokenize_pair(references, hypotheses)
    frequencies = DocumentFrequencies.from_references(tokens.values())
    assert frequencies.images == 200
    expected = score_images(references, hypotheses).values["CIDEr-D"]
    np.testing.assert_allclose(
        score_images(references, hypotheses, frequencies).values["CIDEr-D"], expected, atol=1e-12
    )
    frequencies.save(tmp_path / "frequencies.gz")
    loaded = DocumentFrequencies.load(tmp_path / "frequencies.gz")
    assert loaded.images == 200 and dict(loaded.counts) == dict(frequencies.counts)


def test_document_frequencies_of_a_corpus_change_the_score():
    references, hypotheses = make_random_captions(50, 4)
    corpus = DocumentFrequencies.from_references(tokenize_pair(*make_random_captions(400, 5))[0].values())
    assert score(references, hypotheses, corpus)["CIDEr-D"] != pytest.approx(score(references, hypotheses)["CIDEr-D"])
    # Without a corpus, a single image scores 0, because each n-gram of its references occurs in every image.
    assert score({1: ["a red dog"]}, {1: "a red dog"})["CIDEr-D"] == 0
    assert score({1: ["a red dog"]}, {1: "a red dog"}, corpus)["CIDEr-D"] > 5


def test_corrupt_document_frequencies_are_rejected(tmp_path):
    path = tmp_path / "frequencies.gz"
    DocumentFrequencies(3, {"a": 1, "a dog": 2}).save(path)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"frequencies\.gz is not a valid document frequency file"):
        DocumentFrequencies.load(path)
    path.write_text("something else")
    with pytest.raises(ValueError, match=r"frequencies\.gz is not a valid document frequency file"):
        DocumentFrequencies.load(path)

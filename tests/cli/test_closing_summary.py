"""The remarks at the end of training on weights that are probably not good."""

from __future__ import annotations

import dataclasses

from small_evaluation import make_scored_evaluation

from caption_jax.cli.closing_summary import describe_weaknesses


def make(step: int, images: int, words: float):
    evaluation = make_scored_evaluation()
    return dataclasses.replace(
        evaluation,
        references={number: ["a dog"] for number in range(images)},
        diversity={**evaluation.diversity, "vocabulary": words},
        protocol={**evaluation.protocol, "step": step},
    )


def test_weights_selected_on_few_images_are_reported_unless_they_are_the_last():
    (remark,) = describe_weaknesses(make(20, images=15, words=90), last_step=60)
    assert remark.startswith("these weights were selected on only 15 images") and "--checkpoint=last" in remark
    assert not describe_weaknesses(make(60, images=15, words=90), last_step=60)
    assert not describe_weaknesses(make(20, images=150, words=90), last_step=60)


def test_captions_of_a_few_words_are_reported():
    (remark,) = describe_weaknesses(make(60, images=15, words=6), last_step=60)
    assert remark.startswith("the captions of 15 images consist of only 6 different words")
    assert not describe_weaknesses(make(60, images=2, words=6), last_step=60)

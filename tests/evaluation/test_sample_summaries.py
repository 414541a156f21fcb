"""TensorBoard shows the loss and CIDEr-D first, then the other scalars, captions and attention maps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

IMAGES = ("validation_images/captions", "validation_images/word_attention")


def sort_key(tag: str) -> list[tuple[int, str | float]]:
    """Returns a key that sorts tags like TensorBoard: separators and numbers before letters, numbers by value."""
    parts = re.findall(r"\d+|.", tag)
    return [(0, part) if part in "/_" else (1, float(part)) if part.isdigit() else (2, part) for part in parts]


@pytest.fixture(scope="module")
def tags(small_workdir: Path) -> list[str]:
    """The tags of the scalars and images of a run, in TensorBoard's order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(small_workdir / "tensorboard")).Reload()
    return sorted(set(events.Tags()["tensors"]) - {"config"}, key=sort_key)


def test_scalars_precede_captions_and_captions_precede_attention(tags):
    assert tags[:3] == ["overview/CIDEr-D_val", "overview/loss_train", "overview/loss_val"]
    assert tuple(tags[-2:]) == IMAGES
    assert [tag.partition("/")[0] for tag in tags[3:-2]] == sorted(tag.partition("/")[0] for tag in tags[3:-2])
    assert {"train/loss", "val/loss", "val/CIDEr-D", "val/BLEU-4", "train/learning_rate"} <= set(tags)


def test_each_sample_is_a_picture_of_a_card(small_workdir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(small_workdir / "tensorboard")).Reload()
    for tag in IMAGES:
        (event,) = events.Tensors(tag)  # one evaluation
        width, height, *pictures = event.tensor_proto.string_val
        assert (width, height, len(pictures)) == (b"720", b"432", 1)  # config.train.sample_images is 1

"""Packing of captions, as selected by the config and the platform."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from word_vocabulary import WordVocabulary

from caption_jax.config import default_config
from caption_jax.errors import ConfigError
from caption_jax.parameters.sharding import make_mesh
from caption_jax.specs import RunSpec
from caption_jax.training.batch_placer import choose_block_layout, choose_packing, choose_row_lengths, make_batch_placer
from input_pipeline.block_layout import BlockLayout
from input_pipeline.records import Record, Split


def make_spec(**changes) -> RunSpec:
    config = default_config()
    config.update_from_flattened_dict({"data.captions_per_image": 5, "data.batch_size": 8, **changes})
    return RunSpec.from_config(config)


def make_batch() -> dict[str, np.ndarray]:
    tokens = np.ones((8, 5, 40), np.int32)
    tokens[..., :10] = 7
    return {"tokens": tokens, "mask": np.arange(8) != 3}


def place_batch(layout: BlockLayout | None = None, **changes):
    spec = make_spec(**changes)
    return make_batch_placer(spec, make_mesh(spec.mesh, jax.devices()[:2]), layout)(make_batch())


def make_mesh_of(platform: str, devices: int = 2):
    """Returns a stand-in for a mesh of devices that are not attached."""
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)] * devices), shape={"data": devices})


def make_split(words: list[int]) -> Split:
    """Returns a split of images with five captions each, of the given numbers of words."""
    records = [Record(Path(f"{i}.png"), (" ".join(["a"] * count),) * 5, i) for i, count in enumerate(words)]
    return Split("train", records)


def test_captions_are_packed_into_one_row_per_cpu_device():
    batch = place_batch()
    ids = batch["segment_ids"]
    assert batch["inputs"].shape == batch["targets"].shape == batch["positions"].shape == ids.shape == (2, 256)
    assert len(ids.devices()) == 2
    assert [int((row > 0).sum()) for row in ids] == [3 * 5 * 9, 4 * 5 * 9]


def test_rows_have_the_lengths_chosen_for_the_captions():
    spec, mesh = make_spec(), make_mesh(make_spec().mesh, jax.devices()[:2])
    lengths = choose_row_lengths(spec, mesh, make_split([12] * 50), WordVocabulary())
    assert lengths == (384,)  # four images with five captions of 13 tokens
    assert make_batch_placer(spec, mesh, row_lengths=lengths)(make_batch())["inputs"].shape == (2, 384)


def test_packing_can_be_disabled_and_is_skipped_with_microbatches():
    assert "segment_ids" not in place_batch(**{"train.packing": "never"})
    assert "segment_ids" not in place_batch(**{"optimizer.grad_accum_steps": 2})


@pytest.mark.parametrize("microbatches", [1, 2])
def test_captions_are_packed_into_the_blocks_of_a_layout(microbatches):
    changes = {"train.packing": "blocks", "optimizer.grad_accum_steps": microbatches}
    ids = place_batch(BlockLayout(40, extra=4), **changes)["segment_ids"]
    images = 4 // microbatches
    assert ids.shape == (2 * microbatches, images + 4, 40) and len(ids.devices()) == 2
    assert int((ids > 0).sum()) == 7 * 5 * 9


def test_the_platform_selects_the_form_of_packing():
    single, accumulating = make_spec(), make_spec(**{"optimizer.grad_accum_steps": 2})
    assert [choose_packing(spec, make_mesh_of("cpu")) for spec in (single, accumulating)] == ["always", "never"]
    for platform in ("tpu", "gpu"):
        assert [choose_packing(spec, make_mesh_of(platform)) for spec in (single, accumulating)] == ["blocks"] * 2
    assert choose_packing(make_spec(**{"train.packing": "blocks"}), make_mesh_of("cpu")) == "blocks"


def test_block_lengths_fit_the_captions_and_the_platform():
    spec, split = make_spec(**{"train.steps": 20}), make_split([12] * 49 + [30])
    layouts = [choose_block_layout(spec, make_mesh_of(kind), split, WordVocabulary()) for kind in ("tpu", "gpu")]
    assert layouts == [BlockLayout(128, 1), BlockLayout(96, 2)]
    fixed = make_spec(**{"train.steps": 20, "train.block_length": 80})
    assert choose_block_layout(fixed, make_mesh_of("tpu"), split, WordVocabulary()) == BlockLayout(80, 2)


def test_captions_are_not_packed_if_blocks_would_not_save_tokens():
    one_caption = {"train.steps": 20, "data.captions_per_image": 1}
    arguments = make_mesh_of("tpu"), make_split([12] * 50), WordVocabulary()
    assert choose_block_layout(make_spec(**one_caption), *arguments) is None
    assert choose_block_layout(make_spec(**one_caption, **{"train.packing": "blocks"}), *arguments) == BlockLayout(
        128, 0
    )


def test_very_long_captions_have_blocks_of_their_length():
    spec = make_spec(**{"train.steps": 20, "data.max_length": 300})
    layout = choose_block_layout(spec, make_mesh_of("tpu"), make_split([12] * 49 + [290]), WordVocabulary())
    assert layout.length == 384


@pytest.mark.parametrize("changes", [{"train.packing": "sometimes"}, {"train.packing": "always"}])
def test_invalid_settings_raise_an_error_that_names_the_key(changes):
    with pytest.raises(ValueError, match=r"config\.train\.packing"):
        place_batch(**changes, **{"optimizer.grad_accum_steps": 2})


def test_blocks_shorter_than_a_caption_are_rejected():
    spec = make_spec(**{"train.steps": 20, "train.block_length": 30})
    with pytest.raises(ConfigError, match=r"block_length=30 is too short .* set it to at least 39, or to 0"):
        choose_block_layout(spec, make_mesh_of("tpu"), make_split([5]), WordVocabulary())

"""Packing of captions into rows without padding, as selected by the config."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from caption_jax.config import default_config
from caption_jax.parameters.sharding import make_mesh
from caption_jax.specs import RunSpec
from caption_jax.training.batch_placer import make_batch_placer


def place_batch(**changes):
    config = default_config()
    config.update_from_flattened_dict(changes)
    tokens = np.ones((8, 5, 40), np.int32)
    tokens[..., :10] = 7
    batch = {"tokens": tokens, "mask": np.arange(8) != 3}
    return make_batch_placer(RunSpec.from_config(config), make_mesh(config.mesh, jax.devices()[:2]))(batch)


def test_captions_are_packed_into_one_row_per_cpu_device():
    batch = place_batch()
    ids = batch["segment_ids"]
    assert batch["inputs"].shape == batch["targets"].shape == batch["positions"].shape == ids.shape == (2, 256)
    assert len(ids.devices()) == 2
    assert [int((row > 0).sum()) for row in ids] == [3 * 5 * 9, 4 * 5 * 9]


def test_packing_can_be_disabled_and_is_skipped_with_microbatches():
    assert "segment_ids" not in place_batch(**{"train.packing": "never"})
    assert "segment_ids" not in place_batch(**{"optimizer.grad_accum_steps": 2})


@pytest.mark.parametrize("changes", [{"train.packing": "sometimes"}, {"train.packing": "always"}])
def test_invalid_settings_raise_an_error_that_names_the_key(changes):
    with pytest.raises(ValueError, match=r"config\.train\.packing"):
        place_batch(**changes, **{"optimizer.grad_accum_steps": 2})

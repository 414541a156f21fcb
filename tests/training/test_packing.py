"""Which runs leave out pads."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from caption_jax.config import default_config
from caption_jax.parameters.sharding import make_mesh
from caption_jax.specs import RunSpec
from caption_jax.training.packing import batch_placer


def placed(**changes):
    config = default_config()
    config.update_from_flattened_dict(changes)
    tokens = np.ones((8, 5, 40), np.int32)
    tokens[..., :10] = 7
    batch = {"tokens": tokens, "mask": np.arange(8) != 3}
    return batch_placer(RunSpec.from_config(config), make_mesh(config.mesh, jax.devices()[:2]))(batch)


def test_on_a_cpu_tokens_alone_are_places_of_each_device():
    places = placed()["places"]
    assert places.shape == (2, 256) and len(places.devices()) == 2
    assert [int((row < 4 * 5 * 39).sum()) for row in places] == [3 * 5 * 9, 4 * 5 * 9]


def test_a_run_can_keep_pads_and_slices_do():
    assert "places" not in placed(**{"train.packing": "never"})
    assert "places" not in placed(**{"optimizer.accumulation": 2})


@pytest.mark.parametrize("changes", [{"train.packing": "sometimes"}, {"train.packing": "always"}])
def test_what_cannot_be_is_named(changes):
    with pytest.raises(ValueError, match=r"config\.train\.packing"):
        placed(**changes, **{"optimizer.accumulation": 2})

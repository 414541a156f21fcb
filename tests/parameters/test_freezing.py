from __future__ import annotations

import numpy as np

from caption_jax.parameters.freezing import frozen_norms, phases

PARAMS = {
    "encoder": {
        "stem": {"kernel": np.zeros((3, 4))},
        "norm": {"scale": np.zeros(4), "bias": np.zeros(4)},
        "head": {"kernel": np.zeros((4, 5)), "bias": np.zeros(5)},
    },
    "decoder": {"out": {"kernel": np.zeros((5, 6))}, "norm": {"scale": np.zeros(6), "bias": np.zeros(6)}},
}
STAGED = (
    (r"encoder/(stem|norm)/.*", {"lr": 0}),
    (r"encoder/head/.*", {"lr": 0.1, "from_step": 3}),
    (r"decoder/.*", {}),
)


def test_phases_say_what_is_frozen_from_when():
    stem, head = "encoder/stem/kernel", {"encoder/head/kernel", "encoder/head/bias"}
    norm = {"encoder/norm/scale", "encoder/norm/bias"}
    assert phases(PARAMS, STAGED) == [(0, frozenset({stem} | norm | head)), (3, frozenset({stem} | norm))]
    assert phases(PARAMS, ((".*", {}),)) == [(0, frozenset())]


def test_a_norm_is_frozen_when_scale_and_bias_are():
    assert frozen_norms(phases(PARAMS, STAGED)[0][1]) == {"encoder/norm"}
    assert frozen_norms({"encoder/norm/scale", "encoder/head/bias", "encoder/head/kernel"}) == frozenset()

"""A small parameter tree, and optimizer rules that train part of it only from a later step."""

from __future__ import annotations

import numpy as np

PARAMS = {
    "encoder": {
        "stem": {"kernel": np.zeros((3, 4))},
        "norm": {"scale": np.zeros(4), "bias": np.zeros(4)},
        "head": {"kernel": np.zeros((4, 5)), "bias": np.zeros(5)},
    },
    "decoder": {"out": {"kernel": np.zeros((5, 6))}, "norm": {"scale": np.zeros(6), "bias": np.zeros(6)}},
}
STAGED_RULES = (
    (r"encoder/(stem|norm)/.*", {"lr": 0}),
    (r"encoder/head/.*", {"lr": 0.1, "from_step": 3}),
    (r"decoder/.*", {}),
)

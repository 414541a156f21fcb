from __future__ import annotations

from staged_rules import PARAMS, STAGED

from caption_jax.parameters.freezing import frozen_norms, phases


def test_phases_list_the_frozen_parameters_per_step():
    stem, head = "encoder/stem/kernel", {"encoder/head/kernel", "encoder/head/bias"}
    norm = {"encoder/norm/scale", "encoder/norm/bias"}
    assert phases(PARAMS, STAGED) == [(0, frozenset({stem} | norm | head)), (3, frozenset({stem} | norm))]
    assert phases(PARAMS, ((".*", {}),)) == [(0, frozenset())]


def test_a_norm_is_frozen_if_its_scale_and_bias_are():
    assert frozen_norms(phases(PARAMS, STAGED)[0][1]) == {"encoder/norm"}
    assert frozen_norms({"encoder/norm/scale", "encoder/head/bias", "encoder/head/kernel"}) == frozenset()

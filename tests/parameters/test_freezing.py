from __future__ import annotations

from staged_rules import PARAMS, STAGED_RULES

from caption_jax.parameters.freezing import frozen_norms, phases


def test_each_phase_has_its_first_step_and_frozen_parameters():
    stem, head = "encoder/stem/kernel", {"encoder/head/kernel", "encoder/head/bias"}
    norm = {"encoder/norm/scale", "encoder/norm/bias"}
    assert phases(PARAMS, STAGED_RULES) == [(0, frozenset({stem} | norm | head)), (3, frozenset({stem} | norm))]
    assert phases(PARAMS, ((".*", {}),)) == [(0, frozenset())]


def test_a_norm_is_frozen_if_its_scale_and_bias_are_frozen():
    assert frozen_norms(phases(PARAMS, STAGED_RULES)[0][1]) == {"encoder/norm"}
    assert frozen_norms({"encoder/norm/scale", "encoder/head/bias", "encoder/head/kernel"}) == frozenset()

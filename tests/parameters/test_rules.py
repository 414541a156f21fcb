from __future__ import annotations

import jax
import pytest
from staged_rules import PARAMS, STAGED_RULES

from caption_jax.config import default_config
from caption_jax.parameters.paths import flatten
from caption_jax.parameters.rules import ParameterRule, match_rules


def test_each_parameter_gets_the_settings_of_its_rule():
    rules = match_rules(PARAMS, STAGED_RULES)
    assert rules["encoder"]["norm"]["scale"] == ParameterRule(lr=0)
    assert rules["encoder"]["head"]["bias"] == ParameterRule(lr=0.1, from_step=3)
    assert jax.tree.structure(rules) == jax.tree.structure(PARAMS)


def test_rules_can_be_read_from_a_locked_config():
    config = default_config()
    config.optimizer.rules = STAGED_RULES
    assert flatten(match_rules(PARAMS, config.optimizer.rules)) == flatten(match_rules(PARAMS, STAGED_RULES))


@pytest.mark.parametrize(
    ("rules", "fragments"),
    [
        ((("encoder/.*", {}),), ["no rule matches", "'decoder/out/kernel'"]),
        (((".*", {}), ("decoder/.*", {})), ["'.*' and 'decoder/.*'", "'decoder/norm/bias'", "exactly one"]),
        (((".*", {}), ("encodr/head/.*", {})), ["'encodr/head/.*' matches no parameter", "'encoder/head'"]),
        (
            (("decoder/.*", {}), ("encoder", {})),
            ["'encoder' matches no parameter; it matches only a part of", "adding '.*'"],
        ),
        (((".*", {"form_step": 3}),), ["'form_step'", "did you mean 'from_step'"]),
        (((".*", {"freeze": True}),), ["'freeze'", "lr=0 freezes"]),
        (((".*", {"lr": -1.0}),), ["lr to -1.0"]),
        (((".*", {"from_step": 2.5}),), ["from_step to 2.5"]),
        ((("(", {}),), ["'('", "not a valid regular expression"]),
        ((".*",), ["'.*'", "pair"]),
    ],
)
def test_invalid_rules_are_rejected(rules, fragments):
    with pytest.raises(ValueError) as error:
        match_rules(PARAMS, rules)
    for fragment in fragments:
        assert fragment in str(error.value)

"""Beam search compared with a reference implementation and with exhaustive search."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_beam_search as reference
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_captioner import (
    EOS,
    LENGTH,
    MODEL,
    PAD,
    compute_next_log_probs,
    enumerate_captions,
    make_random_captioner,
    pad_caption,
)

from caption_jax.decoding import LENGTH_PENALTIES, beam_search, constraints, greedy

# Name -> (constraint, reference rule), from the values `v` of an example. Values are traced, so all examples of a test
# case share one compiled program.
RULES = {
    "no_special_tokens": (lambda v: constraints.banned_tokens([0, 1]), lambda v: reference.no_special_tokens()),
    "min_length": (
        lambda v: constraints.min_length(v["shortest"], eos_id=EOS),
        lambda v: reference.min_length(v["shortest"]),
    ),
    "max_length": (
        lambda v: constraints.max_length(v["longest"], eos_id=EOS),
        lambda v: reference.max_length(v["longest"]),
    ),
    "must_end": (lambda v: constraints.max_length(eos_id=EOS), lambda v: reference.max_length(LENGTH + 1)),
    "no_repeat_1": (lambda v: constraints.no_repeat_ngram(1), lambda v: reference.no_repeat_ngram(1)),
    "no_repeat_2": (lambda v: constraints.no_repeat_ngram(2), lambda v: reference.no_repeat_ngram(2)),
    "no_immediate_repeats": (lambda v: constraints.no_immediate_repeats(), lambda v: reference.no_immediate_repeats()),
    "penalty": (
        lambda v: constraints.repetition_penalty(v["penalty"]),
        lambda v: reference.repetition_penalty(float(np.float32(v["penalty"]))),
    ),
    "endings": (
        lambda v: constraints.banned_endings([[3], [4, 5]], eos_id=EOS),
        lambda v: reference.banned_endings([(3,), (4, 5)]),
    ),
    "phrases": (
        lambda v: constraints.banned_phrases([[5, 3], [4]]),
        lambda v: reference.banned_phrases([(5, 3), (4,)]),
    ),
    "prefix": (lambda v: constraints.required_prefix(v["prefix"]), lambda v: reference.required_prefix(v["prefix"])),
}
VALUES = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([0.0, 0.7, 1.0, 1.6, -0.5]),
        "diversity": st.sampled_from([0.0, 0.3, 2.0]),
        "shortest": st.integers(2, 5),
        "longest": st.integers(3, 6),
        "penalty": st.sampled_from([1.0, 1.3, 2.5]),
        "prefix": st.lists(st.sampled_from([-1, EOS, 3, 4, 5]), min_size=2, max_size=2),
    }
)
limit_examples = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def compile_beam_search(rules: tuple[str, ...], **options):
    @jax.jit
    def run(variables, memory, values):
        rule_constraints = [RULES[name][0](values) for name in ("no_special_tokens", *rules)]
        if "groups" in options:
            return beam_search(
                MODEL,
                variables,
                memory,
                **options,
                max_length=LENGTH + 1,
                alpha=values["alpha"],
                diversity=values["diversity"],
                constraints=rule_constraints,
            )
        return beam_search(
            MODEL,
            variables,
            memory,
            **options,
            max_length=LENGTH + 1,
            alpha=values["alpha"],
            constraints=rule_constraints,
        )

    return run


def run_beam_search(rules, seed, values, **options):
    """Returns the decoded captions, the next-token log-probabilities per image, and the reference rules."""
    variables, memory = make_random_captioner(seed)
    traced = {name: jnp.asarray(value) for name, value in values.items()}
    decoded = jax.device_get(compile_beam_search(rules, **options)(variables, memory, traced))
    reference_rules = [RULES[name][1](values) for name in ("no_special_tokens", *rules)]
    return decoded, compute_next_log_probs(variables, memory), reference_rules


def assert_candidates_match(decoded, image, expected, table):
    """Asserts that the candidates are the `expected` (score, caption) pairs, and that the remaining ones are empty."""
    for rank in range(decoded.all_tokens.shape[1]):
        tokens, score = decoded.all_tokens[image, rank].tolist(), decoded.all_scores[image, rank]
        if rank >= len(expected):
            assert tokens == [PAD] * LENGTH and score == -np.inf
            assert np.asarray(decoded.all_log_probs)[image, rank] == -np.inf
            continue
        assert tokens == pad_caption(expected[rank][1])
        assert score == pytest.approx(expected[rank][0], abs=1e-4)
        log_prob = reference.compute_log_prob(table, expected[rank][1])
        assert np.asarray(decoded.all_log_probs)[image, rank] == pytest.approx(log_prob, abs=1e-4)
        log_probs = [table[expected[rank][1][:t]][token] for t, token in enumerate(expected[rank][1])]
        np.testing.assert_allclose(decoded.all_token_log_probs[image, rank][: len(log_probs)], log_probs, atol=1e-4)


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        pytest.param((), {"num_beams": 2, "length_penalty": "power"}, marks=pytest.mark.slow),
        ((), {"num_beams": 3, "length_penalty": "gnmt", "candidates": 3}),
        (("min_length", "no_repeat_2"), {"num_beams": 3, "length_penalty": "power", "candidates": 2}),
        (("penalty", "endings"), {"num_beams": 2, "length_penalty": "gnmt"}),
        (("prefix", "must_end"), {"num_beams": 3, "length_penalty": "power"}),
        (("phrases", "max_length"), {"num_beams": 2, "length_penalty": "power", "candidates": 2}),
        ((), {"num_beams": 4, "groups": 2, "length_penalty": "power", "candidates": 2}),
        (("no_immediate_repeats",), {"num_beams": 3, "length_penalty": "power", "candidates": 3}),
        (("no_repeat_1",), {"num_beams": 6, "groups": 3, "length_penalty": "gnmt", "candidates": 6}),
    ],
    ids=lambda value: "-".join(map(str, value.values() if isinstance(value, dict) else value)) or "free",
)
@limit_examples
@given(seed=st.integers(0, 10**6), values=VALUES)
def test_beam_search_matches_the_reference(rules, options, seed, values):
    decoded, tables, reference_rules = run_beam_search(rules, seed, values, **options)
    penalty = getattr(reference, options["length_penalty"])(values["alpha"])
    groups = options.get("groups", 1)
    candidates, diversity = options.get("candidates", 1) // groups, values["diversity"] if groups > 1 else 0.0
    for image, table in enumerate(tables):
        try:
            expected = reference.beam_search(
                table, reference_rules, penalty, options["num_beams"], candidates, groups, diversity
            )
        except reference.NearTieError:
            assume(False)
        scores = [score for score, _ in expected]
        assume(all(better - worse > 2e-5 for better, worse in itertools.pairwise(scores)))
        assert_candidates_match(decoded, image, expected, table)


# Enough beams for an exhaustive search.
EXHAUSTIVE_BEAMS = 3 ** (LENGTH - 1) * 4


@pytest.mark.parametrize(
    ("rules", "length_penalty"),
    [
        pytest.param((), "power", marks=pytest.mark.slow),
        (("min_length", "penalty", "no_repeat_2", "endings"), "gnmt"),
        pytest.param(("prefix", "phrases"), "gnmt", marks=pytest.mark.slow),
    ],
)
@limit_examples
@given(seed=st.integers(0, 10**6), values=VALUES)
def test_exhaustive_beam_search_returns_the_best_captions(rules, length_penalty, seed, values):
    options = {"num_beams": EXHAUSTIVE_BEAMS, "candidates": 4, "length_penalty": length_penalty}
    decoded, tables, reference_rules = run_beam_search(rules, seed, values, **options)
    penalty = getattr(reference, length_penalty)(values["alpha"])
    for image, table in enumerate(tables):
        scored = [
            (reference.compute_score(table, caption, reference_rules) / penalty(len(caption)), caption)
            for caption in enumerate_captions()
        ]
        best = sorted((pair for pair in scored if pair[0] > -np.inf), key=lambda pair: -pair[0])[:5]
        assume(all(better[0] - worse[0] > 2e-5 for better, worse in itertools.pairwise(best)))
        assert_candidates_match(decoded, image, best[:4], table)


@pytest.mark.parametrize("seed", range(5))
def test_a_single_beam_matches_greedy_decoding(seed):
    variables, memory = make_random_captioner(seed)
    no_special_tokens = [constraints.banned_tokens([0, 1])]
    single = beam_search(MODEL, variables, memory, max_length=5, num_beams=1, alpha=1.0, constraints=no_special_tokens)
    expected = greedy(MODEL, variables, memory, max_length=5, constraints=no_special_tokens)
    np.testing.assert_array_equal(single.tokens, expected.tokens)
    np.testing.assert_array_equal(single.log_prob, expected.log_prob)
    lengths = (np.asarray(single.tokens) != PAD).sum(-1)
    np.testing.assert_allclose(single.score, expected.log_prob / lengths, atol=1e-6)


def test_decoding_stops_when_no_live_beam_can_win():
    """If captions almost certainly end immediately, decoding takes one step regardless of `max_length`."""
    variables, memory = make_random_captioner(0)
    bias = variables["params"]["decoder"]["output_bias"]
    variables["params"]["decoder"]["output_bias"] = bias + 50 * np.eye(6, dtype=np.float32)[EOS]
    steps = []

    def record_step(log_probs, progress):
        jax.debug.callback(lambda step: steps.append(int(step)), progress.step)
        return log_probs

    decoded = beam_search(MODEL, variables, memory, max_length=5, num_beams=3, alpha=0.5, constraints=[record_step])
    jax.block_until_ready(decoded.tokens)
    jax.effects_barrier()
    assert decoded.tokens.tolist() == [[EOS, PAD, PAD, PAD]] * 2
    assert max(steps) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3, "groups": 2}, "must divide num_beams=3"),
        ({"num_beams": 2, "candidates": 3}, "cannot be more than num_beams=2"),
        ({"num_beams": 4, "groups": 2, "candidates": 3}, "multiple of groups=2"),
        ({"num_beams": 0}, "at least 1"),
        ({"length_penalty": "wu"}, "power, gnmt"),
    ],
)
def test_invalid_settings_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        beam_search(MODEL, *make_random_captioner(0), max_length=5, **options)


def test_length_penalties_match_the_published_formulas():
    lengths = jnp.array([1.0, 7.0])
    np.testing.assert_allclose(LENGTH_PENALTIES["power"](lengths, 0.5), [1, 7**0.5], rtol=1e-6)
    np.testing.assert_allclose(LENGTH_PENALTIES["gnmt"](lengths, 0.5), [1, 2**0.5], rtol=1e-6)

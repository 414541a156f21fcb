"""Beam search, penalties and constraints once more, over lists of Python numbers: the reference of the real ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from tiny_captioner import EOS, LENGTH, VOCABULARY

# (tokens so far, log-probabilities) -> log-probabilities
Rule = Callable[[tuple[int, ...], list[float]], list[float]]
Table = dict[tuple[int, ...], np.ndarray]


def power(alpha: float) -> Callable[[int], float]:
    return lambda length: float(length) ** alpha


def gnmt(alpha: float) -> Callable[[int], float]:
    return lambda length: ((5 + length) / 6) ** alpha


def forbid(test: Callable[[tuple[int, ...]], bool]) -> Rule:
    """No caption whose beginning passes the test."""
    return lambda said, scores: [-math.inf if test((*said, i)) else score for i, score in enumerate(scores)]


def only_words() -> Rule:
    return forbid(lambda said: said[-1] in (0, 1))


def at_least(tokens: int) -> Rule:
    return forbid(lambda said: said[-1] == EOS and len(said) + 1 < tokens)


def ends_by(tokens: int) -> Rule:
    return forbid(lambda said: said[-1] != EOS and len(said) + 1 >= tokens)


def without(phrases: Sequence[tuple[int, ...]]) -> Rule:
    return forbid(lambda said: any(said[-len(phrase) :] == phrase for phrase in phrases))


def not_ending(endings: Sequence[tuple[int, ...]]) -> Rule:
    def bad(said: tuple[int, ...]) -> bool:
        if said[-1] != EOS and len(said) < LENGTH:
            return False
        words = said[:-1] if said[-1] == EOS else said
        return any(len(words) >= len(ending) and words[-len(ending) :] == ending for ending in endings)

    return forbid(bad)


def beginning(prefix: Sequence[int]) -> Rule:
    return forbid(lambda said: any(a != b for a, b in zip(said, prefix, strict=False) if b >= 0))


def no_repeat(size: int) -> Rule:
    def repeats(said: tuple[int, ...]) -> bool:
        grams = [said[i : i + size] for i in range(len(said) - size + 1)]
        return len(grams) != len(set(grams))

    return forbid(repeats)


def no_immediate_repeats() -> Rule:
    return forbid(lambda said: any(one == next_one for one, next_one in itertools.pairwise(said)))


def less_of_the_same(penalty: float) -> Rule:
    return lambda said, scores: [s * penalty if i in said and s > -math.inf else s for i, s in enumerate(scores)]


def allowed(table: Table, said: tuple[int, ...], rules: Sequence[Rule]) -> list[float]:
    scores = table[said].tolist()
    for rule in rules:
        scores = rule(said, scores)
    return scores


def score_of(table: Table, caption: tuple[int, ...], rules: Sequence[Rule]) -> float:
    return sum(allowed(table, caption[:t], rules)[token] for t, token in enumerate(caption))


def log_prob_of(table: Table, caption: tuple[int, ...]) -> float:
    return sum(table[caption[:t]][token] for t, token in enumerate(caption))


class NearTieError(Exception):
    """Two choices differ by less than float32 can tell."""


def plain_beam_search(table, rules, penalty, beams, keep, groups=1, diversity=0.0):
    """Each group's best (score, caption), best first."""
    width = beams // groups
    live = [[(0.0, ())] for _ in range(groups)]
    ended = [[] for _ in range(groups)]
    for step in range(LENGTH):
        chosen = [0] * VOCABULARY
        for group in range(groups):
            options = [
                (score + s - diversity * chosen[token], (*said, token))
                for score, said in live[group]
                for token, s in enumerate(allowed(table, said, rules))
                if s > -math.inf
            ]
            options.sort(key=lambda option: -option[0])
            _no_near_tie(options, width)
            going_on = [option for option in options if option[1][-1] != EOS]
            _no_near_tie(going_on, width)
            live[group] = going_on[:width]
            ended[group] += [(s / penalty(step + 1), said) for s, said in options[:width] if said[-1] == EOS]
            for _, said in live[group]:
                chosen[said[-1]] += 1
    found = []
    for group in range(groups):
        options = ended[group] + [(s / penalty(LENGTH), said) for s, said in live[group]]
        options.sort(key=lambda option: -option[0])
        _no_near_tie(options, keep)
        found += options[:keep]
    return sorted(found, key=lambda option: -option[0])


def _no_near_tie(options, count: int) -> None:
    scores = [score for score, _ in options[: count + 1]]
    if any(a - b < 2e-5 for a, b in itertools.pairwise(scores)):
        raise NearTieError

"""Reference implementation of beam search, length penalties and constraints, over lists of Python numbers."""

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
    """Rejects tokens after which the hypothesis passes the test."""
    return lambda tokens, scores: [-math.inf if test((*tokens, i)) else score for i, score in enumerate(scores)]


def words_only() -> Rule:
    return forbid(lambda tokens: tokens[-1] in (0, 1))


def min_length(length: int) -> Rule:
    return forbid(lambda tokens: tokens[-1] == EOS and len(tokens) + 1 < length)


def max_length(length: int) -> Rule:
    return forbid(lambda tokens: tokens[-1] != EOS and len(tokens) + 1 >= length)


def banned_phrases(phrases: Sequence[tuple[int, ...]]) -> Rule:
    return forbid(lambda tokens: any(tokens[-len(phrase) :] == phrase for phrase in phrases))


def banned_endings(endings: Sequence[tuple[int, ...]]) -> Rule:
    def is_banned(tokens: tuple[int, ...]) -> bool:
        if tokens[-1] != EOS and len(tokens) < LENGTH:
            return False
        words = tokens[:-1] if tokens[-1] == EOS else tokens
        return any(len(words) >= len(ending) and words[-len(ending) :] == ending for ending in endings)

    return forbid(is_banned)


def required_prefix(prefix: Sequence[int]) -> Rule:
    return forbid(lambda tokens: any(a != b for a, b in zip(tokens, prefix, strict=False) if b >= 0))


def no_repeat_ngram(size: int) -> Rule:
    def repeats(tokens: tuple[int, ...]) -> bool:
        grams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
        return len(grams) != len(set(grams))

    return forbid(repeats)


def no_immediate_repeats() -> Rule:
    return forbid(lambda tokens: any(a == b for a, b in itertools.pairwise(tokens)))


def repetition_penalty(penalty: float) -> Rule:
    return lambda tokens, scores: [s * penalty if i in tokens and s > -math.inf else s for i, s in enumerate(scores)]


def constrained_scores(table: Table, tokens: tuple[int, ...], rules: Sequence[Rule]) -> list[float]:
    scores = table[tokens].tolist()
    for rule in rules:
        scores = rule(tokens, scores)
    return scores


def score_of(table: Table, caption: tuple[int, ...], rules: Sequence[Rule]) -> float:
    return sum(constrained_scores(table, caption[:t], rules)[token] for t, token in enumerate(caption))


def log_prob_of(table: Table, caption: tuple[int, ...]) -> float:
    return sum(table[caption[:t]][token] for t, token in enumerate(caption))


class NearTieError(Exception):
    """Two scores are too close to be ordered in float32."""


def plain_beam_search(table, rules, penalty, beams, candidates, groups=1, diversity=0.0):
    """Returns the best (score, caption) pairs of all groups, best first."""
    width = beams // groups
    live = [[(0.0, ())] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    for step in range(LENGTH):
        counts = [0] * VOCABULARY
        for group in range(groups):
            options = [
                (score + s - diversity * counts[token], (*tokens, token))
                for score, tokens in live[group]
                for token, s in enumerate(constrained_scores(table, tokens, rules))
                if s > -math.inf
            ]
            options.sort(key=lambda option: -option[0])
            _no_near_tie(options, width)
            unfinished = [option for option in options if option[1][-1] != EOS]
            _no_near_tie(unfinished, width)
            live[group] = unfinished[:width]
            finished[group] += [(s / penalty(step + 1), tokens) for s, tokens in options[:width] if tokens[-1] == EOS]
            for _, tokens in live[group]:
                counts[tokens[-1]] += 1
    results = []
    for group in range(groups):
        options = finished[group] + [(s / penalty(LENGTH), tokens) for s, tokens in live[group]]
        options.sort(key=lambda option: -option[0])
        _no_near_tie(options, candidates)
        results += options[:candidates]
    return sorted(results, key=lambda option: -option[0])


def _no_near_tie(options, count: int) -> None:
    scores = [score for score, _ in options[: count + 1]]
    if any(a - b < 2e-5 for a, b in itertools.pairwise(scores)):
        raise NearTieError

"""Reference implementation of beam search, length penalties and constraints, in pure Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from tiny_captioner import BOS, EOS, LENGTH, PAD, VOCABULARY_SIZE

# (tokens so far, log-probabilities) -> log-probabilities
Rule = Callable[[tuple[int, ...], list[float]], list[float]]
# prefix -> log-probabilities of the next token
LogProbTable = dict[tuple[int, ...], np.ndarray]


def power(alpha: float) -> Callable[[int], float]:
    return lambda length: float(length) ** alpha


def gnmt(alpha: float) -> Callable[[int], float]:
    return lambda length: ((5 + length) / 6) ** alpha


def forbid(is_forbidden: Callable[[tuple[int, ...]], bool]) -> Rule:
    """Returns a rule that rejects the next token if the extended hypothesis is forbidden."""
    return lambda tokens, scores: [-math.inf if is_forbidden((*tokens, i)) else x for i, x in enumerate(scores)]


def no_special_tokens() -> Rule:
    return forbid(lambda tokens: tokens[-1] in (BOS, PAD))


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
        body = tokens[:-1] if tokens[-1] == EOS else tokens
        return any(len(body) >= len(ending) and body[-len(ending) :] == ending for ending in endings)

    return forbid(is_banned)


def required_prefix(prefix: Sequence[int]) -> Rule:
    return forbid(
        lambda tokens: any(token != required for token, required in zip(tokens, prefix, strict=False) if required >= 0)
    )


def no_repeat_ngram(size: int) -> Rule:
    def has_repeat(tokens: tuple[int, ...]) -> bool:
        ngrams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
        return len(ngrams) != len(set(ngrams))

    return forbid(has_repeat)


def no_immediate_repeats() -> Rule:
    return forbid(lambda tokens: any(first == second for first, second in itertools.pairwise(tokens)))


def repetition_penalty(penalty: float) -> Rule:
    return lambda tokens, scores: [x * penalty if i in tokens and x > -math.inf else x for i, x in enumerate(scores)]


def apply_rules(table: LogProbTable, tokens: tuple[int, ...], rules: Sequence[Rule]) -> list[float]:
    scores = table[tokens].tolist()
    for rule in rules:
        scores = rule(tokens, scores)
    return scores


def compute_score(table: LogProbTable, caption: tuple[int, ...], rules: Sequence[Rule]) -> float:
    return sum(apply_rules(table, caption[:t], rules)[token] for t, token in enumerate(caption))


def compute_log_prob(table: LogProbTable, caption: tuple[int, ...]) -> float:
    return sum(table[caption[:t]][token] for t, token in enumerate(caption))


class NearTieError(Exception):
    """Two scores are too close to be ordered in float32."""


def beam_search(table, rules, penalty, num_beams, candidates_per_group, groups=1, diversity=0.0):
    """Returns the best (score, caption) pairs of all groups, best first.

    Raises:
        NearTieError: the order of two hypotheses is ambiguous in float32.
    """
    beams_per_group = num_beams // groups
    live = [[(0.0, ())] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    for step in range(LENGTH):
        counts = [0] * VOCABULARY_SIZE
        for group in range(groups):
            options = [
                (score + log_prob - diversity * counts[token], (*tokens, token))
                for score, tokens in live[group]
                for token, log_prob in enumerate(apply_rules(table, tokens, rules))
                if log_prob > -math.inf
            ]
            options.sort(key=lambda option: -option[0])
            _check_no_near_tie(options, beams_per_group)
            unfinished = [option for option in options if option[1][-1] != EOS]
            _check_no_near_tie(unfinished, beams_per_group)
            live[group] = unfinished[:beams_per_group]
            finished[group] += [
                (score / penalty(step + 1), tokens) for score, tokens in options[:beams_per_group] if tokens[-1] == EOS
            ]
            for _, tokens in live[group]:
                counts[tokens[-1]] += 1
    results = []
    for group in range(groups):
        options = finished[group] + [(score / penalty(LENGTH), tokens) for score, tokens in live[group]]
        options.sort(key=lambda option: -option[0])
        _check_no_near_tie(options, candidates_per_group)
        results += options[:candidates_per_group]
    return sorted(results, key=lambda option: -option[0])


def _check_no_near_tie(options, count: int) -> None:
    scores = [score for score, _ in options[: count + 1]]
    if any(better - worse < 2e-5 for better, worse in itertools.pairwise(scores)):
        raise NearTieError

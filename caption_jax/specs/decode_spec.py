"""`config.decode`: how captions are made of the model's probabilities."""

from __future__ import annotations

import dataclasses

from input_pipeline.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """Settings of greedy decoding, beam search and sampling.

    Inside a program `alpha`, `temperature`, `top_p`, `diversity` and `rerank_weight` may be traced scalars.
    """

    method: str = "greedy"  # "greedy", "beam" or "sample"
    max_length: int = 40  # most tokens of a caption, <s> and </s> included
    min_length: int = 0  # fewest, counted in the same way
    at_limit: str = "cut"  # a caption that reaches max_length is "cut" there, or made to "end" with </s>
    beams: int = 5  # beam: hypotheses kept
    candidates: int = 1  # beam: captions returned per image
    length_penalty: str = "power"  # beam: scores over "power" (length ** alpha) or "gnmt" (((5 + length) / 6) ** alpha)
    alpha: float = 0.0  # beam: 0 for no length penalty, more for longer captions
    groups: int = 1  # beam: diverse groups that the beams are split into
    diversity: float = 0.5  # beam: what a token costs a group for each time that groups before have chosen it
    draws: int = 1  # sample: captions drawn per image
    temperature: float = 1.0  # sample: log-probabilities are divided by it
    top_k: int = 0  # sample: among so many likeliest tokens; 0 for all
    top_p: float = 1.0  # sample: among the likeliest tokens that have this probability together; 1 for all
    seed: int = 0  # sample
    # beam, sample: candidates (all beams, all draws) are ranked by score + rerank_weight x cosine of caption and image;
    # 0 for no such ranking. Needs a model trained with objective.contrastive_weight; `--mode=tune` finds the value.
    rerank_weight: float = 0.0
    double_tokens: str = "allow"  # a token directly after itself, as in "a large large dog": "allow" or "forbid"
    no_repeat_ngram: int = 0  # no so many tokens in a row twice; 0 for no such rule
    repetition_penalty: float = 1.0  # log-probabilities of tokens that have occurred are multiplied by this
    banned_words: tuple[str, ...] = ()  # words or phrases that no caption holds
    banned_endings: tuple[str, ...] = ()  # words or phrases that no caption ends in, with or without a full stop
    prefix: str = ""  # text that every caption begins with

    def __post_init__(self):
        if self.method not in ("greedy", "beam", "sample"):
            raise ConfigError(f'config.decode.method is {self.method!r}; it must be "greedy", "beam" or "sample"')
        if self.at_limit not in ("cut", "end"):
            raise ConfigError(f'config.decode.at_limit is {self.at_limit!r}; it must be "cut" or "end"')
        if self.double_tokens not in ("allow", "forbid"):
            raise ConfigError(f'config.decode.double_tokens is {self.double_tokens!r}; it must be "allow" or "forbid"')
        if self.repetition_penalty < 1:
            raise ConfigError(f"config.decode.repetition_penalty is {self.repetition_penalty}; it must be 1 or more")

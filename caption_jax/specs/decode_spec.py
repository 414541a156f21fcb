"""`config.decode`: how captions are made of the model's probabilities."""

from __future__ import annotations

import dataclasses

from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import SEED, above, at_least, check_fields, interval, one_of, texts


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
        check_fields(
            self,
            "config.decode",
            method=one_of("greedy", "beam", "sample"),
            max_length=at_least(2, "<s> and a token"),
            min_length=at_least(0, "for any"),
            at_limit=one_of("cut", "end"),
            beams=at_least(1),
            candidates=at_least(1),
            length_penalty=one_of("power", "gnmt"),
            alpha=interval("[-10, 10]", "0 for no length penalty"),
            groups=at_least(1),
            diversity=at_least(0, "for none"),
            draws=at_least(1),
            temperature=above(0),
            top_k=at_least(0, "for all"),
            top_p=interval("(0, 1]", "1 for all"),
            seed=SEED,
            rerank_weight=at_least(0, "for none"),
            double_tokens=one_of("allow", "forbid"),
            no_repeat_ngram=at_least(0, "for no such rule"),
            repetition_penalty=at_least(1),
            banned_words=texts("words or phrases"),
            banned_endings=texts("words or phrases"),
        )
        if self.min_length > self.max_length:
            raise ConfigError(
                f"config.decode.min_length={self.min_length} is more than config.decode.max_length={self.max_length}: "
                "lower the former, or raise the latter"
            )
        if self.method == "beam":
            self._check_beams()

    def check_ranking(self) -> None:
        """Raises ConfigError where `rerank_weight` is to choose among the candidates of a method that gives one."""
        number = {"beam": "beams", "sample": "draws"}.get(self.method)
        if number is None or getattr(self, number) < 2:
            single = f'method="{self.method}"' + (f" and {number}={getattr(self, number)}" if number else "")
            raise ConfigError(
                f"config.decode.rerank_weight={self.rerank_weight} chooses among candidates, and "
                f"config.decode.{single} gives one: set method to beam with beams, or to sample with draws, above 1"
            )

    def _check_beams(self) -> None:
        if self.beams % self.groups:
            raise ConfigError(f"config.decode.groups={self.groups} must divide config.decode.beams={self.beams}")
        if self.candidates > 1 and self.candidates % self.groups:
            raise ConfigError(
                f"config.decode.candidates={self.candidates} must be 1 or a multiple of config.decode.groups="
                f"{self.groups}: each group gives as many"
            )
        if self.candidates > self.beams:
            raise ConfigError(
                f"config.decode.candidates={self.candidates} cannot be more than beams={self.beams}: raise beams"
            )

"""`config.decode`: decoding of captions."""

from __future__ import annotations

import dataclasses

from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import SEED, at_least, check_fields, fitted_or, greater_than, interval, one_of, strings

CONSENSUS_METRICS = ("CIDEr-D", "BLEU-4", "ROUGE-L")


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """Settings of greedy decoding, beam search and sampling.

    Under `jax.jit`, `alpha`, `temperature`, `top_p` and `diversity` may be traced scalars.
    """

    method: str = "greedy"  # "greedy", "beam" or "sample"
    max_length: int = 40  # maximum number of tokens, including <s> and </s>; 0 for data.max_length
    min_length: int = 0  # minimum number of tokens, including <s> and </s>
    at_limit: str = "cut"  # captions that reach max_length are "cut", or forced to "end" with </s>
    num_beams: int = 5  # beam: hypotheses per image
    candidates: int = 1  # beam: captions returned per image
    # beam: divisor of scores, "power" (length ** alpha) or "gnmt" (((5 + length) / 6) ** alpha)
    length_penalty: str = "power"
    alpha: float = 0.0  # beam: 0 for no length penalty; higher values favour longer captions
    groups: int = 1  # beam: number of groups of beams (diverse beam search)
    diversity: float = 0.5  # beam: penalty on a token per hypothesis of an earlier group that chose it at this step
    num_samples: int = 1  # sample: samples per image
    temperature: float = 1.0  # sample: divisor of the log-probabilities
    top_k: int = 0  # sample: restrict sampling to the k most likely tokens; 0 for all
    top_p: float = 1.0  # sample: nucleus sampling, restricted to this probability mass; 1 for all
    seed: int = 0  # sample: random seed
    # beam, sample: ranks candidates (all beams or samples) by score + rerank_weight * cosine(caption, image); 0 to
    # disable. Requires a model trained with objective.contrastive_weight. `--mode=tune` finds the best value.
    rerank_weight: float = 0.0
    # beam, sample: adds consensus_weight * the score that a candidate can expect if one of the others is the reference,
    # by consensus_metric: "CIDEr-D" (0 to 10), "BLEU-4" or "ROUGE-L" (0 to 1). `--mode=tune` finds the best weight.
    consensus_weight: float = 0.0
    consensus_metric: str = "CIDEr-D"
    # Models whose probabilities are averaged with those of the model in the workdir (evaluate, tune, caption, index):
    # workdirs or model-<step> folders, each optionally followed by @STEP or @last. They must share the tokenizer and
    # the image size.
    ensemble: tuple[str, ...] = ()
    immediate_repeats: str = "allow"  # repeats of a token, as in "a large large dog": "allow" or "forbid"
    no_repeat_ngram: int = 0  # length of n-grams that must not be repeated; 0 to disable
    repetition_penalty: float = 1.0  # factor on the log-probabilities of tokens that have already been generated
    banned_words: tuple[str, ...] = ()  # words or phrases that captions must not contain
    banned_endings: tuple[str, ...] = ()  # words or phrases that captions must not end with, with or without a period
    prefix: str = ""  # text that every caption starts with

    def __post_init__(self):
        check_fields(
            self,
            "config.decode",
            method=one_of("greedy", "beam", "sample"),
            max_length=fitted_or("0 (for data.max_length)", 0, at_least(2, "<s> and a token", largest=2**16)),
            min_length=at_least(0, "for any"),
            at_limit=one_of("cut", "end"),
            num_beams=at_least(1),
            candidates=at_least(1),
            length_penalty=one_of("power", "gnmt"),
            alpha=interval("[-10, 10]", "0 for no length penalty"),
            groups=at_least(1),
            diversity=at_least(0, "for none"),
            num_samples=at_least(1),
            temperature=greater_than(0),
            top_k=at_least(0, "for all"),
            top_p=interval("(0, 1]", "1 for all"),
            seed=SEED,
            rerank_weight=at_least(0, "for none"),
            consensus_weight=at_least(0, "for none"),
            consensus_metric=one_of(*CONSENSUS_METRICS),
            ensemble=strings("workdirs"),
            immediate_repeats=one_of("allow", "forbid"),
            no_repeat_ngram=at_least(0, "for no restriction"),
            repetition_penalty=at_least(1),
            banned_words=strings("words or phrases"),
            banned_endings=strings("words or phrases"),
        )
        if self.min_length > self.max_length > 0:
            raise ConfigError(
                f"config.decode.min_length={self.min_length} must not exceed config.decode.max_length={self.max_length}"
            )
        if self.method == "beam":
            self._check_beams()

    def check_no_ensemble(self, subcommand: str) -> None:
        """Raises ConfigError if an ensemble is set for a subcommand that uses a single model."""
        if self.ensemble:
            raise ConfigError(
                f"config.decode.ensemble={list(self.ensemble)} averages trained models in evaluate, tune, caption and "
                f"index, but {subcommand} uses a single model: remove the key"
            )

    @property
    def ranks_candidates(self) -> bool:
        """Whether candidates are ranked by more than their scores."""
        return self.rerank_weight > 0 or self.consensus_weight > 0

    def check_ranking(self) -> None:
        """Raises ConfigError if the decoding method yields a single candidate, which cannot be reranked."""
        key = {"beam": "num_beams", "sample": "num_samples"}.get(self.method)
        if key is None or getattr(self, key) < 2:
            setting = f'method="{self.method}"' + (f" and {key}={getattr(self, key)}" if key else "")
            weight = "rerank_weight" if self.rerank_weight else "consensus_weight"
            raise ConfigError(
                f"config.decode.{weight}={getattr(self, weight)} reranks candidates, but "
                f"config.decode.{setting} yields only one: use beam search with num_beams > 1, or "
                "sampling with num_samples > 1"
            )

    def _check_beams(self) -> None:
        if self.num_beams % self.groups:
            raise ConfigError(
                f"config.decode.groups={self.groups} must divide config.decode.num_beams={self.num_beams}"
            )
        if self.candidates > 1 and self.candidates % self.groups:
            raise ConfigError(
                f"config.decode.candidates={self.candidates} must be 1 or a multiple of config.decode.groups="
                f"{self.groups}, because each group returns the same number"
            )
        if self.candidates > self.num_beams:
            raise ConfigError(
                f"config.decode.candidates={self.candidates} must not exceed config.decode.num_beams={self.num_beams}"
            )

"""`config.metrics`: scoring of generated captions."""

from __future__ import annotations

import dataclasses

from input_pipeline.spec_checks import check_fields, one_of


@dataclasses.dataclass(frozen=True)
class MetricsSpec:
    """Settings of the caption metrics, in training, evaluation and tuning."""

    # "ptb" (English; the tokens of COCO's tools) or "characters", for languages without spaces between words
    tokenizer: str = "ptb"

    def __post_init__(self):
        # The names in caption_jax.metrics.TOKENIZERS, which are not imported here: specs do not import NumPy.
        check_fields(self, "config.metrics", tokenizer=one_of("ptb", "characters"))

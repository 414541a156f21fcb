"""What a bulk run computes, as it is sent to the workers."""

from __future__ import annotations

import dataclasses
from typing import Any

from caption_jax.errors import ConfigError
from caption_jax.specs import DecodeSpec, as_mapping
from input_pipeline.limits import Limits


@dataclasses.dataclass(frozen=True)
class Job:
    """The model of a run, and what to compute of each image.

    Attributes:
        workdir: absolute path or URL of the workdir or the model folder, which all workers can read.
        checkpoint: "best", "last" or a step.
        decode: decoding settings.
        limits: limits on images.
        folder: absolute path or URL of the output folder.
        weights: dtype of the weights in memory.
        captions: whether to caption the images.
        vectors: whether to embed the images.
        alternatives: number of captions per image besides the best.
        batch_size: maximum number of images per batch.
        images_per_part: number of image files per Parquet file. A shard is always one Parquet file.
    """

    workdir: str
    checkpoint: str
    decode: DecodeSpec
    limits: Limits
    folder: str
    weights: str = "stored"
    captions: bool = True
    vectors: bool = False
    alternatives: int = 0
    batch_size: int = 16
    images_per_part: int = 1000

    def __post_init__(self):
        decode = self.decode
        candidates = {"greedy": 1, "beam": decode.num_beams, "sample": decode.num_samples}[decode.method]
        if self.alternatives and self.alternatives >= candidates:
            key = "num_samples" if decode.method == "sample" else "num_beams"
            method = "" if decode.method == "sample" else "--config.decode.method=beam "
            raise ConfigError(
                f"--alternatives={self.alternatives} requires {self.alternatives + 1} candidates per image, but there "
                f"are {candidates}: set {method}--config.decode.{key}={self.alternatives + 1}"
            )

    def complete_decode(self, max_length: int) -> DecodeSpec:
        """Returns the decoding settings with a maximum length, and with as many candidates as are needed.

        Args:
            max_length: that of the model, which replaces 0.
        """
        decode = self.decode
        candidates = max(decode.candidates, self.alternatives + 1) if decode.method == "beam" else decode.candidates
        return dataclasses.replace(decode, max_length=decode.max_length or max_length, candidates=candidates)

    def list_settings(self) -> dict[str, Any]:
        """Returns the values that the output depends on apart from the model, by flag or config key."""
        return {
            **{f"config.decode.{key}": value for key, value in as_mapping(self.decode).items()},
            **{f"config.limits.{key}": value for key, value in as_mapping(self.limits).items()},
            "--weights": self.weights,
            "--captions": "generated" if self.captions else "none",
            "--vectors": self.vectors,
            "--alternatives": self.alternatives,
            "--images_per_part": self.images_per_part,
        }

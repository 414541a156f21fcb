"""Decoding settings that a format does not support."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from caption_jax.errors import ConfigError
from caption_jax.specs import DecodeSpec

# Settings of beam search, sampling and consensus, which have no effect on greedy decoding.
WITHOUT_EFFECT = (
    *("num_beams", "candidates", "length_penalty", "alpha", "groups", "diversity"),
    *("num_samples", "temperature", "top_k", "top_p", "seed", "consensus_metric"),
)


def check_decode_settings(spec: DecodeSpec, to: str, supported: Container[str]) -> None:
    """Checks that settings which a format does not support have their default values.

    Args:
        spec: the decoding settings of the export.
        to: the format.
        supported: names of the settings that the format supports, or that have no effect in it.

    Raises:
        ConfigError: one of the others has another value. The message names the flag that changes it.
    """
    defaults = DecodeSpec()
    for name in (field.name for field in dataclasses.fields(spec)):
        value, default = getattr(spec, name), getattr(defaults, name)
        if name not in supported and value != default:
            raise ConfigError(
                f"--to={to} does not support config.decode.{name}={value!r}: add --config.decode.{name}={default!r} "
                "to export the model nevertheless, or use --to=folder"
            )

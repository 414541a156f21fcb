"""One-line summary of `config.decode`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caption_jax.specs.conversion import as_mapping
from caption_jax.specs.decode_spec import DecodeSpec

# Settings that are shown for each decoding method even if they have default values.
_ALWAYS_SHOWN = {"beam": ("num_beams", "length_penalty", "alpha"), "sample": ("temperature", "top_k", "top_p", "seed")}


def decode_settings(decode: Mapping[str, Any]) -> str:
    """Summarises `config.decode`: the method, its main settings and all other settings with non-default values.

    For example, "beam alpha=0.0 length_penalty=power max_length=40 num_beams=3".

    Args:
        decode: name -> value. Settings that older runs do not have are set to their defaults.
    """
    defaults = as_mapping(DecodeSpec())
    settings = {**defaults, **decode}
    always_shown = ("max_length", *_ALWAYS_SHOWN.get(decode["method"], ()))
    names = [name for name in sorted(defaults) if name in always_shown or settings[name] != defaults[name]]
    return " ".join([decode["method"], *(f"{name}={settings[name]}" for name in names if name != "method")])

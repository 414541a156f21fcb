"""An evaluation as text on the terminal."""

from __future__ import annotations

from itertools import islice
from typing import Any

from caption_jax.config import default_config
from caption_jax.training.evaluate import Evaluation


def print_evaluation(found: Evaluation, samples: int = 8) -> None:
    """Prints the protocol, the scores, and some of the captions."""
    how = found.protocol
    print(f"\n{how['split']} split: {how['images']} images ({how['image_input']}), step {how['step']}, {how['device']}")
    print(f"tokenization: {how['tokenization']}; decoding: {_settings(how['decode'])}\n")
    width = max(map(len, found.metrics))
    for name, value in found.metrics.items():
        print(f"  {name:<{width}} {value:8.4f}")
    if found.unreadable:
        print(f"\n{len(found.unreadable)} images could not be read and count as empty captions:")
        for image_id, reason in islice(found.unreadable.items(), 10):
            print(f"  {image_id}: {reason}")
    print()
    for image_id, caption in islice(found.captions.items(), samples):
        print(f"  {image_id}\t{caption}")


def _settings(decode: dict[str, Any]) -> str:
    """The method and the settings that are not at their defaults."""
    usual = default_config().decode.to_dict()
    changed = [f"{key}={value}" for key, value in decode.items() if key != "method" and value != usual.get(key)]
    return " ".join([decode["method"], *changed])

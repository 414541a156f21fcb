"""An evaluation as text on the terminal."""

from __future__ import annotations

from itertools import islice
from typing import Any

from caption_jax.config import default_config
from caption_jax.evaluation.assessment import Assessment

# Settings that results name whatever their values.
_TOLD = {"beam": ("beams", "length_penalty", "alpha"), "sample": ("temperature", "top_k", "top_p", "seed")}


def print_evaluation(found: Assessment, samples: int = 8) -> None:
    """Prints the protocol, the scores with their intervals, what the captions are like, and some of them."""
    how, evaluation = found.protocol, found.evaluation
    shown = how["image_input"] + (f", context {how['context']}" if "context" in how else "")
    print(f"\n{how['split']} split: {how['images']} images ({shown}), step {how['step']}, {how['device']}")
    print(f"tokenization: {how['tokenization']}; decoding: {decode_settings(how['decode'])}")
    print(f"intervals: {how['intervals']}\n")
    width = max(map(len, [*found.metrics, *found.absent, *found.diversity]))
    for name, value in found.metrics.items():
        interval = found.intervals.get(name)
        print(f"  {name:<{width}} {value:9.4f}" + (f"   [{interval.low:.4f}, {interval.high:.4f}]" if interval else ""))
    for name, reason in found.absent.items():
        print(f"  {name:<{width}}    absent: {reason}")
    print()
    for name, value in found.diversity.items():
        print(f"  {name:<{width}} {value:9.4f}")
    if evaluation.unreadable:
        print(f"\n{len(evaluation.unreadable)} images could not be read and count as empty captions:")
        for image_id, reason in islice(evaluation.unreadable.items(), 10):
            print(f"  {image_id}: {reason}")
    print()
    for image_id, caption in islice(evaluation.captions.items(), samples):
        print(f"  {image_id}\t{caption}")


def decode_settings(decode: dict[str, Any]) -> str:
    """The method, what it always depends on, and the other settings that are not at their defaults."""
    usual = default_config().decode.to_dict()
    told = ("max_length", *_TOLD.get(decode["method"], ()))
    names = [name for name in usual if name in told or decode.get(name, usual[name]) != usual[name]]
    return " ".join(
        [decode["method"], *(f"{name}={decode.get(name, usual[name])}" for name in names if name != "method")]
    )

"""An evaluation as text on the terminal."""

from __future__ import annotations

from itertools import islice

from caption_jax.training.evaluate import Evaluation


def print_evaluation(found: Evaluation, samples: int = 8) -> None:
    """Prints the protocol, the scores, and some of the captions."""
    how = found.protocol
    print(f"\n{how['split']} split: {how['images']} images ({how['image_input']}), step {how['step']}, {how['device']}")
    print(f"tokenization: {how['tokenization']}; decoding: {how['decode']}\n")
    for name, value in found.metrics.items():
        print(f"  {name:<16} {value:8.4f}")
    if found.unreadable:
        print(f"\n{len(found.unreadable)} images could not be read and count as empty captions:")
        for image_id, reason in islice(found.unreadable.items(), 10):
            print(f"  {image_id}: {reason}")
    print()
    for image_id, caption in islice(found.captions.items(), samples):
        print(f"  {image_id}\t{caption}")

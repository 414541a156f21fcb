"""Captions images with ONNX Runtime.

    python captioner.py photo.jpg more/*.png

or, from Python, `Captioner(folder).caption(["photo.jpg"])`. Requires onnxruntime, NumPy and Pillow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from caption_jax.export.pixel_source import load_pixels
from caption_jax.export.text_source import EOS, decode_text, print_captions

PAD = 1  # id of <pad>


class Captioner:
    """The two graphs in a folder, which greedy decoding runs: the image encoder once, and then a step per token."""

    def __init__(self, folder: str | os.PathLike[str] = Path(__file__).parent):
        folder = Path(folder)
        self.preprocessing = json.loads((folder / "preprocessing.json").read_text("utf-8"))
        self.tokens = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        self.encoder, self.step = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encode", "step"))

    def caption(self, images: Sequence[str | os.PathLike[str] | Image.Image]) -> list[str]:
        """Returns a caption for each image, which is a path or a PIL image. All images are one batch."""
        pixels = np.stack([load_pixels(image, self.preprocessing) for image in images])
        return [decode_text(ids, self.tokens) for ids in self.decode_greedily(pixels)[0].tolist()]

    def decode_greedily(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens [batch, length], padded after </s>, and log-probabilities [batch] of pixels, uint8."""
        shapes = {entry.name: (len(pixels), *entry.shape[1:]) for entry in self.step.get_inputs()}
        memory = _run(self.encoder, {"pixels": pixels})
        feeds = {name: memory[name] if name in memory else np.zeros(shapes[name], np.float32) for name in shapes}
        tokens, log_probs = np.full(shapes["tokens"], PAD, np.int32), np.zeros(len(pixels), np.float32)
        is_finished = np.zeros(len(pixels), bool)
        for index in range(tokens.shape[1]):
            feeds |= {"tokens": tokens, "step": np.array(index, np.int32)}
            results = _run(self.step, feeds)
            feeds |= {name.removeprefix("new_"): value for name, value in results.items() if name.startswith("new_")}
            tokens[:, index] = np.where(is_finished, PAD, results["token"])
            log_probs += np.where(is_finished, 0, results["log_prob"])
            is_stuck = ~is_finished & (tokens[:, index] == PAD)  # the decoding settings allow no token
            tokens[is_stuck], log_probs[is_stuck] = PAD, 0
            is_finished |= is_stuck | (tokens[:, index] == EOS)
            if is_finished.all():
                break
        return tokens, log_probs


def _run(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the results of a graph by name."""
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


if __name__ == "__main__":
    print_captions(Captioner().caption)

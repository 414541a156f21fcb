"""Captions images with JAX.

    python captioner.py photo.jpg more/*.png

or, from Python, `Captioner(folder).caption(["photo.jpg"])`. Requires jax, flatbuffers, NumPy and Pillow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax import export
from PIL import Image

from caption_jax.export.pixel_source import load_pixels
from caption_jax.export.text_source import decode_text, print_captions


class Captioner:
    """The programs and weights in a folder. Both programs take the weights and pixels [batch, size, size, 3], uint8.

    Attributes:
        weights: arrays by name.
        encode_program: returns `memory` [batch, positions, width] and, if the model has it, `embedding`.
        caption_program: returns tokens [batch, length], padded after </s>, and log-probabilities [batch].
    """

    def __init__(self, folder: str | os.PathLike[str] = Path(__file__).parent):
        folder = Path(folder)
        self.preprocessing = json.loads((folder / "preprocessing.json").read_text("utf-8"))
        self.tokens = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        self.weights = jax.device_put(read_weights(folder / "model.safetensors"))
        self.encode_program, self.caption_program = (
            jax.jit(export.deserialize(bytearray((folder / name).read_bytes())).call)
            for name in ("encode.bin", "caption.bin")
        )

    def caption(self, images: Sequence[str | os.PathLike[str] | Image.Image]) -> list[str]:
        """Returns a caption for each image, which is a path or a PIL image. All images are one batch."""
        pixels = np.stack([load_pixels(image, self.preprocessing) for image in images])
        tokens, _ = self.caption_program(self.weights, pixels)
        return [decode_text(ids, self.tokens) for ids in tokens.tolist()]


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """Reads float32 arrays in the safetensors format: the length of a JSON header, the header, and the arrays."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries.pop("__metadata__", None)
    values = np.frombuffer(content[start:], "<f4")
    return {
        name: values[entry["data_offsets"][0] // 4 : entry["data_offsets"][1] // 4].reshape(entry["shape"])
        for name, entry in entries.items()
    }


if __name__ == "__main__":
    print_captions(Captioner().caption)

"""A captioner of plain squares for tests of the index. It needs no training, and its output is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from caption_jax.inference.captioner import Caption
from caption_jax.retrieval.index import ModelIdentity

MODEL = ModelIdentity(930, "ab" * 32)
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (250, 250, 250)}


class ColourModel:
    """Fake captioner. The vector of an image is its mean colour, its caption the name of the nearest colour."""

    def __init__(self):
        self.embedded = 0

    def embed_images(self, images):
        self.embedded += len(images)
        colours = np.array([image.mean((0, 1)) for image in images], np.float32).reshape(-1, 3) + 1
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)

    def caption(self, images):
        return [Caption(min(COLOURS, key=lambda name: distance(COLOURS[name], image)), 0.0, ()) for image in images]


def distance(colour, image) -> float:
    return float(np.abs(image.mean((0, 1)) - colour).sum())


def paint(path: Path, colour: str) -> None:
    Image.new("RGB", (9, 9), COLOURS[colour]).save(path)

"""A fake captioner of single-colour images, for tests of the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from caption_jax.inference.captioner import Caption
from caption_jax.retrieval.index import ModelIdentity

MODEL = ModelIdentity(930, "ab" * 32)
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (250, 250, 250)}


class ColourModel:
    """Embeds an image as its normalised mean colour, and captions it with the name of the nearest colour."""

    def __init__(self):
        self.num_embedded = 0

    def embed_images(self, images):
        self.num_embedded += len(images)
        colours = np.array([image.mean((0, 1)) for image in images], np.float32).reshape(-1, 3) + 1
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)

    def caption(self, images):
        return [Caption(get_nearest_colour(image), 0.0, ()) for image in images]


def get_nearest_colour(image: np.ndarray) -> str:
    mean = image.mean((0, 1))
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


def write_image(path: Path, colour: str) -> None:
    Image.new("RGB", (9, 9), COLOURS[colour]).save(path)

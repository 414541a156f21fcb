"""Model dimensions and random batches, the same for all implementations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from input_pipeline.special_tokens import BOS, EOS, PAD


@dataclass(frozen=True)
class Workload:
    """Dimensions of the captioner and of a batch.

    Attributes:
        variant: EfficientNet variant of the image encoder.
        layers: number of decoder layers.
        width: width of the decoder.
        heads: attention heads per layer.
        feed_forward: hidden width of the feed-forward networks.
        vocabulary_size: number of tokens.
        image_size: height and width of images in pixels.
        images: images per batch.
        captions: captions per image.
        length: maximum length of captions, including <s> and </s>.
        decoded_images: images per decoding batch.
        beams: hypotheses per image in beam search.
        decoded_tokens: tokens per decoded caption.
        steps: updates, passes or batches per timed run.
    """

    variant: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary_size: int
    image_size: int
    images: int
    captions: int
    length: int
    decoded_images: int
    beams: int
    decoded_tokens: int
    steps: int

    @property
    def memory_length(self) -> int:
        """Number of cells in the feature grid."""
        return (self.image_size // 32) ** 2

    def make_batch(self) -> dict[str, np.ndarray]:
        """Returns random images and captions, which contain 12 tokens on average, padded to `length`."""
        rng = np.random.default_rng(0)
        size = self.image_size
        tokens = rng.integers(3, self.vocabulary_size, (self.images, self.captions, self.length), np.int32)
        lengths = np.clip(rng.poisson(12, tokens.shape[:2]), 2, self.length - 1)
        position = np.arange(self.length)
        tokens = np.where(position < lengths[..., None], tokens, np.where(position == lengths[..., None], EOS, PAD))
        tokens[..., 0] = BOS
        return {
            "image": rng.integers(0, 256, (self.images, size, size, 3), np.uint8),
            "tokens": tokens.astype(np.int32),
            "mask": np.ones(self.images, bool),
        }

    def make_memory(self) -> np.ndarray:
        """Returns a random decoder memory, float32 [decoded_images, memory_length, width]."""
        shape = self.decoded_images, self.memory_length, self.width
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# "full" has the model dimensions of configs/coco.py. "small" is for tests.
SCALES = {
    "full": Workload("b0", 6, 512, 8, 2048, 10_000, 224, 128, 5, 40, 128, 5, 20, 10),
    "small": Workload("micro", 1, 16, 2, 32, 40, 32, 4, 2, 20, 2, 2, 6, 2),
}

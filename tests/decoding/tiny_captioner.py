"""A captioner with three words, small enough to enumerate every caption."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.decoder import Decoder
from caption_jax.models.image_encoder import ImageEncoder
from input_pipeline.special_tokens import BOS, EOS, PAD

WORDS = (3, 4, 5)
VOCABULARY, LENGTH, WIDTH, MEMORY_LENGTH = 6, 4, 8, 3  # LENGTH: tokens after <s>

MODEL = ImageCaptioningModel(
    image_encoder=ImageEncoder(EfficientNet("micro"), width=WIDTH),
    decoder=Decoder(VOCABULARY, layers=1, width=WIDTH, heads=2, feed_forward=8, max_length=LENGTH + 1),
)


@functools.cache
def _shapes():
    tokens, memory = jnp.zeros((1, 1, LENGTH), jnp.int32), jnp.zeros((1, MEMORY_LENGTH, WIDTH))
    return jax.eval_shape(functools.partial(MODEL.init, method="decode"), jax.random.key(0), tokens, memory)


def random_captioner(seed: int, images: int = 2, spread: float = 0.7):
    """Returns variables of `MODEL` and the memory of `images` images; distributions are neither uniform nor peaked."""
    generator = np.random.default_rng(seed)
    normal = lambda shape: (spread * generator.normal(size=shape)).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(lambda leaf: normal(leaf.shape), _shapes())
    return variables, normal((images, MEMORY_LENGTH, WIDTH))


@jax.jit
def _teacher_forced(variables, memory, tokens):
    return jax.nn.log_softmax(MODEL.apply(variables, tokens, memory, method="decode").logits)


def next_log_probs(variables, memory) -> list[dict[tuple[int, ...], np.ndarray]]:
    """Returns the next-token log-probabilities after every prefix, per image, from forward passes without a cache."""
    prefixes = list(itertools.product(WORDS, repeat=LENGTH - 1))
    tokens = np.array([[BOS, *words] for words in prefixes], np.int32)
    tokens = np.broadcast_to(tokens, (len(memory), *tokens.shape))
    log_probs = np.asarray(_teacher_forced(variables, memory, tokens), np.float64)
    return [{words[:t]: rows[i, t] for i, words in enumerate(prefixes) for t in range(LENGTH)} for rows in log_probs]


def all_captions() -> list[tuple[int, ...]]:
    """Returns every possible caption, ending in </s> or truncated at `LENGTH`."""
    finished = [(*words, EOS) for n in range(LENGTH) for words in itertools.product(WORDS, repeat=n)]
    return finished + list(itertools.product(WORDS, repeat=LENGTH))


def padded(caption: tuple[int, ...]) -> list[int]:
    """Returns the caption padded to `LENGTH`."""
    return [*caption, *[PAD] * (LENGTH - len(caption))]

"""Words of captions, computed on the device from token ids.

The metrics count the words of COCO's PTB tokenizer, which splits the text between two spaces, called a chunk here,
almost always without looking at other chunks. Token ids are therefore converted as follows:

1. Each token of the byte-level BPE is a piece of text that may start a new chunk. The hash of a chunk is composed from
   those of its pieces (`word_keys`), so it does not depend on how the chunk was split into tokens.
2. The words of chunks in the training captions, and of chunks of one token, are stored, unless the third rule finds
   them anyway: "mr." -> mr., "don't" -> do, n't.
3. Any other chunk is one word, without punctuation at its end: "flowers," -> flowers. Punctuation alone is no word.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt32

from caption_jax.metrics.ptb import tokenize_all
from caption_jax.rewards.sorted_keys import find_keys, never_empty, sort_keys
from caption_jax.rewards.word_keys import TextHash, mix
from input_pipeline.special_tokens import EOS, SPECIALS
from input_pipeline.tokenizer import Vocabulary, normalise

END = SPECIALS[EOS]  # </s> as a word of a caption
# Words with which captions end after training on CIDEr-D without </s>, because "a" or "with a" is a common n-gram.
# fmt: off
FUNCTION_WORDS = (
    "a", "an", "the", "this", "that", "his", "her", "its", "their", "my", "your", "and", "or", "but", "with",
    "without", "in", "on", "at", "of", "to", "for", "from", "by", "into", "onto", "near", "over", "under",
    "behind", "through", "is", "are", "was", "were", "be", "being", "has", "have", "while", "as",
)
# fmt: on
MAX_WORDS_PER_CHUNK = 4
_EXTRA_WORDS = 4  # there are usually fewer words than tokens, but a token may also be two words ("cannot")
_CONTRACTIONS = frozenset(("'s", "'m", "'d", "'re", "'ve", "'ll"))  # tokens that are words of their own


class Words(NamedTuple):
    """Words of captions.

    Attributes:
        keys: keys of the words; undefined after the last word.
        counts: number of words per caption.
    """

    keys: UInt32[Array, "*captions words 2"]
    counts: Int[Array, "*captions"]

    @property
    def is_word(self) -> Bool[Array, "*captions words"]:
        """True for words, False after the last word."""
        return jnp.arange(self.keys.shape[-2]) < self.counts[..., None]

    @property
    def last(self) -> UInt32[Array, "*captions 2"]:
        """Key of the last word of each caption; undefined for captions without words."""
        last = jnp.maximum(self.counts - 1, 0)[..., None, None]
        return jnp.take_along_axis(self.keys, last, axis=-2)[..., 0, :]

    def append(self, key: UInt32[Array, "2"], where: Bool[Array, "*captions"]) -> Words:
        """Returns the captions with one more word, in those selected by `where`."""
        keys = jnp.concatenate([self.keys, jnp.zeros_like(self.keys[..., :1, :])], axis=-2)
        is_appended = (jnp.arange(keys.shape[-2]) == self.counts[..., None]) & where[..., None]
        return Words(jnp.where(is_appended[..., None], key, keys), self.counts + where)


class WordTable(NamedTuple):
    """Arrays that convert token ids to words, on the host or the device.

    Attributes:
        offsets: hash of the text of each token, without the space before it; see `TextHash.compute`.
        multipliers: multiplier of each token.
        starts_chunk: whether a token starts a new chunk.
        is_punctuation: whether the text of a token is empty, or punctuation that the metrics remove.
        chunk_keys: sorted keys of chunks whose words are stored.
        chunk_words: keys of their words.
        chunk_counts: number of their words.
        function_words: keys of words with which no caption should end.
        end: key of `END`.
    """

    offsets: UInt32[Array | np.ndarray, "vocabulary 2"]
    multipliers: UInt32[Array | np.ndarray, "vocabulary 2"]
    starts_chunk: Bool[Array | np.ndarray, " vocabulary"]
    is_punctuation: Bool[Array | np.ndarray, " vocabulary"]
    chunk_keys: UInt32[Array | np.ndarray, "chunks 2"]
    chunk_words: UInt32[Array | np.ndarray, "chunks words 2"]
    chunk_counts: Int[Array | np.ndarray, " chunks"]
    function_words: UInt32[Array | np.ndarray, "function_words 2"]
    end: UInt32[Array | np.ndarray, "2"]


def ends_in_function_word(words: Words, table: WordTable) -> Bool[Array, "*captions"]:
    """Whether captions, without </s>, end in one of `FUNCTION_WORDS`; False for captions without words."""
    return (words.last[..., None, :] == table.function_words).all(-1).any(-1) & (words.counts > 0)


def find_words(tokens: Int[Array, "*captions length"], table: WordTable, *, include_end: bool) -> Words:
    """Finds the words of captions, inside a jitted function.

    Args:
        tokens: token ids after <s>, up to and including </s>, followed by anything, as in `Decoded.all_tokens`.
        table: table of the vocabulary.
        include_end: whether </s> is the last word of captions that have it. Otherwise it is no word.

    Returns:
        The words, at most four more than there are tokens; further words are dropped.
    """
    *captions, length = tokens.shape
    is_after_end = jnp.cumsum(tokens == EOS, axis=-1) > 0
    is_text = ~is_after_end & (tokens >= len(SPECIALS))
    pieces = _move_to_front(tokens, is_text, length)
    chunks = _compose_chunks(pieces, is_text.sum(-1), table)
    keys, counts = _get_chunk_words(chunks, table)
    is_word = jnp.arange(MAX_WORDS_PER_CHUNK) < counts[..., None]
    is_word = is_word.reshape(*captions, -1)
    keys = keys.reshape(*captions, is_word.shape[-1], 2)
    size = min(length + _EXTRA_WORDS, is_word.shape[-1])
    words = Words(_move_to_front(keys, is_word, size), jnp.minimum(is_word.sum(-1), size))
    return append_end(words, tokens, table) if include_end else words


def append_end(words: Words, tokens: Int[Array, "*captions length"], table: WordTable) -> Words:
    """Returns the words of `tokens` with </s> as the last one of captions that have it."""
    return words.append(table.end, (tokens == EOS).any(-1))


class _Chunks(NamedTuple):
    """Hashes of chunks, at the position of their last token.

    Attributes:
        hashes: hash of the chunk.
        stems: hash of the chunk without punctuation at its end.
        has_stem: whether the chunk is not only punctuation.
        is_end: whether a chunk ends at the position.
    """

    hashes: UInt32[Array, "*captions length 2"]
    stems: UInt32[Array, "*captions length 2"]
    has_stem: Bool[Array, "*captions length"]
    is_end: Bool[Array, "*captions length"]


def _compose_chunks(pieces: Int[Array, "*captions length"], counts: Int[Array, "*captions"], table: WordTable):
    """Composes the chunks of captions from their first `counts` tokens."""
    starts = table.starts_chunk[pieces]
    inputs = (table.offsets[pieces], table.multipliers[pieces], starts, table.is_punctuation[pieces])
    state = (
        jnp.zeros((*counts.shape, 2), jnp.uint32),
        jnp.zeros((*counts.shape, 2), jnp.uint32),
        jnp.zeros(counts.shape, bool),
    )

    def append(state, piece):
        hashes, stems, has_stem = state
        offset, multiplier, starts, is_punctuation = piece
        hashes = jnp.where(starts[..., None], 0, hashes) * multiplier + offset
        keeps_stem = is_punctuation[..., None]
        stems = jnp.where(keeps_stem, jnp.where(starts[..., None], 0, stems), hashes)
        has_stem = ~is_punctuation | (has_stem & ~starts)
        return (hashes, stems, has_stem), (hashes, stems, has_stem)

    axis = pieces.ndim - 1
    by_position = jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), inputs)
    _, outputs = jax.lax.scan(append, state, by_position)
    hashes, stems, has_stem = jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), outputs)
    positions = jnp.arange(pieces.shape[-1])
    starts_next = jnp.concatenate([starts[..., 1:], jnp.ones_like(starts[..., :1])], axis=-1)
    last = counts[..., None] - 1
    return _Chunks(hashes, stems, has_stem, (positions == last) | ((positions < last) & starts_next))


def _get_chunk_words(
    chunks: _Chunks, table: WordTable
) -> tuple[UInt32[Array, "*captions length words 2"], Int[Array, "*captions length"]]:
    """Returns the words of each chunk and their number, which is 0 where no chunk ends."""
    stems = mix(chunks.stems)
    chunk_index, is_stored = find_keys(table.chunk_keys, mix(chunks.hashes))
    stem_index, is_stem_stored = find_keys(table.chunk_keys, stems)
    index = jnp.where(is_stored, chunk_index, stem_index)
    is_stored |= is_stem_stored & chunks.has_stem
    unstored = jnp.broadcast_to(stems[..., None, :], (*stems.shape[:-1], MAX_WORDS_PER_CHUNK, 2))
    words = jnp.where(is_stored[..., None, None], table.chunk_words[index], unstored)
    counts = jnp.where(is_stored, table.chunk_counts[index], chunks.has_stem)
    return words, jnp.where(chunks.is_end, counts, 0)


def _move_to_front(
    values: Shaped[Array, "..."], is_kept: Bool[Array, "*captions values"], size: int
) -> Shaped[Array, "..."]:
    """Removes values, and returns the first `size` entries; those after the last kept value are undefined.

    Args:
        values: array of the shape of `is_kept`, possibly with further axes.
        is_kept: which values are not removed.
        size: length of the last axis of `is_kept` in the result.
    """
    order = jnp.argsort(~is_kept, axis=-1, stable=True)[..., :size]
    return jnp.take_along_axis(
        values, order.reshape(*order.shape, *(1,) * (values.ndim - order.ndim)), is_kept.ndim - 1
    )


def build_word_table(vocabulary: Vocabulary, captions: Iterable[str], text_hash: TextHash) -> WordTable:
    """Builds the table of a vocabulary, on the host.

    Args:
        vocabulary: vocabulary of the token ids.
        captions: the training captions.
        text_hash: hash of texts.
    """
    pieces = [b""] * len(SPECIALS) + [_decode_piece(token) for token in vocabulary.tokens[len(SPECIALS) :]]
    offsets, multipliers = text_hash.compute(piece.strip() for piece in pieces)
    starts = [piece[:1].isspace() or piece.decode("utf-8", "ignore") in _CONTRACTIONS for piece in pieces]
    chunks = {chunk for text in captions for chunk in normalise(text, vocabulary.tokenizer.lowercase).split()}
    chunks |= {piece.decode("utf-8", "ignore").strip() for piece in pieces} - {""}
    chunk_keys, chunk_words, chunk_counts = _build_chunks(sorted(chunks), text_hash)
    return WordTable(
        offsets,
        multipliers,
        np.array(starts, bool),
        np.array([_is_punctuation(piece) for piece in pieces], bool),
        chunk_keys,
        chunk_words,
        chunk_counts,
        text_hash.compute_keys(FUNCTION_WORDS),
        text_hash.compute_keys([END])[0],
    )


def _build_chunks(chunks: Iterable[str], text_hash: TextHash):
    """Returns the keys, words and numbers of words of all chunks that the rule for other chunks does not cover."""
    words = {chunk.lower(): tokenize_all([chunk])[0].split() for chunk in chunks}
    # The end of "mr." is not removed, so such chunks are stored although they are their only word.
    stored = [(chunk, texts) for chunk, texts in words.items() if texts != [chunk] or not chunk[-1].isalnum()]
    stored = [pair for pair in stored if len(pair[1]) <= MAX_WORDS_PER_CHUNK]
    keys = never_empty(text_hash.compute_keys(chunk for chunk, _ in stored))
    word_keys = np.zeros((len(keys), MAX_WORDS_PER_CHUNK, 2), np.uint32)
    counts = np.zeros(len(keys), np.int32)
    for row, (_, chunk_words) in enumerate(stored):
        word_keys[row, : len(chunk_words)] = text_hash.compute_keys(chunk_words)
        counts[row] = len(chunk_words)
    order = sort_keys(keys)
    return keys[order], word_keys[order], counts[order]


def _decode_piece(token: str) -> bytes:
    """Returns the bytes of a token of a byte-level BPE, in lower case unless they are part of a character."""
    values = _byte_values()
    piece = bytes(values[character] for character in token) if all(map(values.__contains__, token)) else token.encode()
    try:
        return piece.decode("utf-8").lower().encode("utf-8")
    except UnicodeDecodeError:
        return piece


def _is_punctuation(piece: bytes) -> bool:
    """Whether the metrics find no word in a piece, which may be empty. A part of a character is not punctuation."""
    try:
        return not tokenize_all([piece.decode("utf-8")])[0]
    except UnicodeDecodeError:
        return False


@functools.cache
def _byte_values() -> dict[str, int]:
    """Returns the byte that each character of a byte-level BPE stands for.

    Printable bytes stand for themselves, and the others are the characters from 256 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}

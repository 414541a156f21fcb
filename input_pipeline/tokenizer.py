"""Converts captions to token ids and back, with byte-level BPE and a compact vocabulary for the decoder.

`Tokenizer` uses *full* ids, which are defined by the tokenizer files (50,265 for RoBERTa). `Vocabulary` maps them to
and from *compact* ids, which cover the special tokens and the tokens in the training captions, so that the output layer
of the decoder has no rows that are never trained. All code outside this module uses compact ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError, DataError, MissingFileError
from input_pipeline.extras import optional_packages
from input_pipeline.files import is_on_bucket, storage_path, write_atomically
from input_pipeline.special_tokens import BOS, EOS, MASK, MIN_VOCABULARY_SIZE, PAD, SPECIALS, UNK
from input_pipeline.tokenizer_files import read_bpe, read_full_ids, read_settings

_WORD_START = "\u0120"  # byte-level BPE's symbol for the space before a word
_MAX_ENCODED = 100_000  # characters of a text that are encoded, far more than there can be in `max_length` tokens
_VOCAB, _MERGES, _SETTINGS, _COMPACT = "vocab.json", "merges.txt", "tokenizer_settings.json", "vocabulary.json"


class Tokenizer:
    """Byte-level BPE with RoBERTa's special tokens and the ids of `vocab.json`.

    Special tokens in text are not parsed; the characters `</s>` in a caption are encoded as ordinary text.

    Args:
        model: BPE model whose vocabulary has `<s>`, `<pad>`, `</s>`, `<unk>` at the ids 0, 1, 2, 3.
        lowercase: whether to lowercase text before tokenization.
        add_prefix_space: whether to encode the first word as if a space preceded it. True for tokenizers trained by
            `train`, False for RoBERTa's.
    """

    def __init__(self, model: models.BPE, *, lowercase: bool, add_prefix_space: bool):
        self.lowercase = lowercase
        self.add_prefix_space = add_prefix_space
        self._backend = Backend(model)
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        self._backend.decoder = decoders.ByteLevel()
        ids = tuple(self._backend.token_to_id(token) for token in SPECIALS)
        if ids != (BOS, PAD, EOS, UNK):
            raise ConfigError(
                f"the tokenizer must use RoBERTa's layout, with {', '.join(SPECIALS)} at the ids (0, 1, 2, 3), got "
                f"{ids}; use a RoBERTa tokenizer or config.data.tokenizer='train'"
            )
        mask = self._backend.token_to_id(MASK)
        self._special_ids = frozenset(ids if mask is None else (*ids, mask))

    @classmethod
    def train(cls, captions: Iterable[str], size: int, lowercase: bool = True) -> Tokenizer:
        """Trains a BPE tokenizer with at most `size` tokens, including special tokens and the 256 bytes.

        Raises:
            ConfigError: `size` is less than the number of special tokens and bytes.
            DataError: there are no captions.
        """
        if size < MIN_VOCABULARY_SIZE:
            raise ConfigError(
                f"config.data.vocabulary_size must be at least {MIN_VOCABULARY_SIZE} (the bytes and special tokens), "
                f"got {size}"
            )
        texts = [normalise(caption, lowercase) for caption in captions]
        if not any(texts):
            raise DataError("cannot train a tokenizer: no training caption contains text")
        trained = Backend(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=[*SPECIALS, MASK],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        trained.train_from_iterator(texts, trainer)
        # The trained backend parses special tokens in text; a tokenizer rebuilt from its model does not.
        state = json.loads(trained.to_str())["model"]
        model = models.BPE(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])
        return cls(model, lowercase=lowercase, add_prefix_space=True)

    @classmethod
    def from_folder(
        cls, path: str | os.PathLike[str], *, lowercase: bool = False, add_prefix_space: bool = False
    ) -> Tokenizer:
        """Reads `vocab.json` and `merges.txt` (RoBERTa's layout) from a folder.

        Raises:
            MissingFileError: one of the two files is missing.
            DataError: one of them is damaged.
        """
        folder = storage_path(path)
        for name in (_VOCAB, _MERGES):
            if not (folder / name).exists():
                raise MissingFileError(
                    f"no such file: {folder / name}; the folder in config.data.tokenizer must contain {_VOCAB} and "
                    f"{_MERGES}"
                )
        model = read_bpe(folder / _VOCAB, folder / _MERGES)
        return cls(model, lowercase=lowercase, add_prefix_space=add_prefix_space)

    @classmethod
    def from_hub(cls, name: str, *, lowercase: bool = False, add_prefix_space: bool = False) -> Tokenizer:
        """Downloads `vocab.json` and `merges.txt` of a hub model such as `roberta-base`, unless they are cached."""
        with optional_packages(f"config.data.tokenizer={name!r}, which is not a local folder,"):
            from huggingface_hub import hf_hub_download  # imported lazily, because most runs do not use the hub

        try:
            vocab = hf_hub_download(name, _VOCAB)
            merges = hf_hub_download(name, _MERGES)
        except Exception as error:  # the hub client raises many types
            raise ConfigError(
                f"config.data.tokenizer={name!r} is not a local folder, and its {_VOCAB} and {_MERGES} could not be "
                f"downloaded from the hub ({type(error).__name__}: {error})"
            ) from error
        model = read_bpe(storage_path(vocab), storage_path(merges))
        return cls(model, lowercase=lowercase, add_prefix_space=add_prefix_space)

    @property
    def size(self) -> int:
        """Number of full ids."""
        return self._backend.get_vocab_size()

    @property
    def special_ids(self) -> frozenset[int]:
        """Full ids of the special tokens."""
        return self._special_ids

    def encode(self, text: str) -> list[int]:
        """Returns the full ids of a caption, including `<s>` and `</s>`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the full ids of a batch of captions (tens of thousands per second)."""
        cleaned = [normalise(text, self.lowercase) for text in texts]
        return [[BOS, *encoding.ids, EOS] for encoding in self._backend.encode_batch_fast(cleaned)]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of full ids, without special tokens or surrounding whitespace."""
        text_ids = [int(i) for i in ids if int(i) not in self._special_ids]
        return self._backend.decode(text_ids, skip_special_tokens=False).strip()

    def id_to_token(self, token_id: int) -> str:
        """Returns the token string of a full id, such as "<s>", or "\u0120dog" at the start of a word."""
        return self._backend.id_to_token(token_id)

    def decode_tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the text of each token, for labels of attention maps; a partial character is decoded as U+FFFD."""
        specials = {i: self._backend.id_to_token(i) for i in self._special_ids}
        return [specials.get(int(i)) or self._backend.decode([int(i)], skip_special_tokens=False) for i in ids]

    def to_json(self) -> str:
        """Returns the content of `tokenizer.json`, the format of the library tokenizers, which ignores `lowercase`."""
        return self._backend.to_str(pretty=True)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer to `folder`, which is created if needed, for `Tokenizer.load`."""
        folder = storage_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as local:  # the library writes only to local disks
            for path in self._backend.model.save(local):
                write_atomically(folder / Path(path).name, Path(path).read_bytes())
        settings = {"lowercase": self.lowercase, "add_prefix_space": self.add_prefix_space}
        write_atomically(folder / _SETTINGS, json.dumps(settings) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Loads a tokenizer saved by `save`; see `from_folder` for the errors."""
        settings = read_settings(storage_path(folder) / _SETTINGS)
        return cls.from_folder(folder, **settings)


class Vocabulary:
    """The tokens that a decoder predicts, and the mapping between their compact ids and the tokenizer's full ids.

    Compact ids: 0 `<s>`, 1 `<pad>`, 2 `</s>`, 3 `<unk>`, then `full_ids` in ascending order.

    Args:
        tokenizer: the tokenizer that defines the full ids.
        full_ids: full ids of the tokens to include; the special tokens are always included.
    """

    def __init__(self, tokenizer: Tokenizer, full_ids: Iterable[int]):
        text_ids = sorted({int(i) for i in full_ids} - {BOS, PAD, EOS, UNK})
        if text_ids and not 0 <= text_ids[-1] < tokenizer.size:
            raise ValueError(f"token id {text_ids[-1]} is out of range for a tokenizer with {tokenizer.size} tokens")
        self.tokenizer = tokenizer
        self._to_full = np.array([BOS, PAD, EOS, UNK, *text_ids], np.int32)
        self._to_compact = np.full(tokenizer.size, UNK, np.int32)
        self._to_compact[self._to_full] = np.arange(len(self._to_full), dtype=np.int32)

    @property
    def size(self) -> int:
        """Number of compact ids, which is the output width of the decoder."""
        return len(self._to_full)

    def to_full(self, ids: Int[np.ndarray, "..."] | Sequence[int]) -> Int[np.ndarray, "..."]:
        """Converts compact ids of any shape to full ids, for a text encoder with the full embedding matrix."""
        return self._to_full[np.asarray(ids, np.int32)]  # the dtype matters for an empty list, which is float otherwise

    def to_compact(self, ids: Int[np.ndarray, "..."] | Sequence[int]) -> Int[np.ndarray, "..."]:
        """Converts full ids of any shape to compact ids; tokens outside the vocabulary become `<unk>`."""
        return self._to_compact[np.asarray(ids, np.int32)]

    def encode(self, text: str, max_length: int) -> Int[np.ndarray, " max_length"]:
        """Returns the compact ids of a caption from `<s>` to `</s>`, padded or truncated as in `encode_batch`."""
        return self.encode_batch([text], max_length)[0]

    def encode_batch(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "captions max_length"]:
        """Returns the compact ids of a batch of captions, padded with `<pad>`.

        A caption of more than `max_length` tokens is truncated and has no `</s>`, so that the model does not learn to
        stop in mid-sentence.
        """
        return self._to_compact[self.encode_full_batch(texts, max_length)]

    def encode_full_batch(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "texts max_length"]:
        """Returns the full ids of a batch of texts, padded or truncated as in `encode_batch`."""
        texts = [text[:_MAX_ENCODED] for text in texts]
        batch = np.full((len(texts), max_length), PAD, np.int32)
        for row, ids in zip(batch, self.tokenizer.encode_batch(texts), strict=True):
            ids = ids[:max_length]
            row[: len(ids)] = ids
        return batch

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of compact ids up to the first `</s>`, without special tokens."""
        caption: list[int] = []
        for token in np.asarray(ids).tolist():
            if token == EOS:
                break
            caption.append(token)
        return self.tokenizer.decode(self._to_full[np.array(caption, np.int32)].tolist())

    def decode_tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the text of each token; see `Tokenizer.decode_tokens`."""
        return self.tokenizer.decode_tokens(self.to_full(list(ids)).tolist())

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token strings by compact id, which identify tokens across vocabularies."""
        return tuple(self.tokenizer.id_to_token(int(i)) for i in self._to_full)

    def words_with_spans(self, ids: Iterable[int]) -> list[tuple[str, int, int]]:
        """Returns the words of compact ids up to `</s>`, each as (word, start, stop) with token indices."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        starts = [index for index, i in enumerate(ids) if index == 0 or self.tokens[i].startswith(_WORD_START)]
        ends = [*starts[1:], len(ids)]
        return [(self.decode(ids[start:end]), start, end) for start, end in zip(starts, ends, strict=False)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer and the mapping to `folder`, for `Vocabulary.load`."""
        self.tokenizer.save(folder)
        # The mapping is written last, so its presence marks the folder as complete.
        full_ids = self._to_full[len(SPECIALS) :].tolist()
        write_atomically(storage_path(folder) / _COMPACT, json.dumps({"full_ids": full_ids}) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Vocabulary:
        """Loads a vocabulary saved by `save`.

        Raises:
            MissingFileError: `folder` contains no vocabulary.
            DataError: a file is damaged.
        """
        path = storage_path(folder) / _COMPACT
        if not path.exists():
            raise MissingFileError(f"no such file: {path}; training writes the vocabulary when it starts")
        tokenizer = Tokenizer.load(folder)
        return cls(tokenizer, read_full_ids(path, tokenizer.size))

    def fingerprint(self) -> str:
        """Returns a hash of the tokenizer and the mapping, which is the same for equal vocabularies."""
        tokenizer = self.tokenizer
        parts = [tokenizer.lowercase, tokenizer.add_prefix_space, tokenizer._backend.to_str(), self._to_full.tolist()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        left, right = self.tokenizer, other.tokenizer
        return (
            np.array_equal(self._to_full, other._to_full)
            and (left.lowercase, left.add_prefix_space) == (right.lowercase, right.add_prefix_space)
            and left._backend.to_str() == right._backend.to_str()
        )

    __hash__ = None


def build_vocabulary(spec: DataSpec, train_captions: Iterable[str]) -> tuple[Vocabulary, Int[np.ndarray, " captions"]]:
    """Builds the vocabulary of a run from `config.data` and the training captions.

    Args:
        spec: `config.data`; the fields `tokenizer` ("train", a folder or a hub name), `vocabulary_size`, `lowercase`
            and `compact_vocabulary` are used.
        train_captions: all captions of the training split.

    Returns:
        The vocabulary, and the number of tokens of each caption, including `<s>` and `</s>`.
    """
    captions = list(train_captions)
    if spec.tokenizer == "train":
        tokenizer = Tokenizer.train(captions, spec.vocabulary_size, spec.lowercase)
    elif is_on_bucket(spec.tokenizer) or Path(spec.tokenizer).is_dir():
        tokenizer = Tokenizer.from_folder(spec.tokenizer, lowercase=spec.lowercase)
    else:
        tokenizer = Tokenizer.from_hub(spec.tokenizer, lowercase=spec.lowercase)
    encoded = tokenizer.encode_batch(captions)
    full_ids = set().union(*encoded) if spec.compact_vocabulary else range(tokenizer.size)
    return Vocabulary(tokenizer, full_ids), np.array([len(ids) for ids in encoded], np.int32)


def normalise(text: str, lowercase: bool) -> str:
    """Collapses whitespace, strips it at both ends, and optionally lowercases the text.

    Halves of surrogate pairs, as in arguments of a command that are not valid UTF-8, become question marks.
    """
    text = " ".join(text.split())
    if not text.isprintable():
        text = text.encode("utf-8", "replace").decode()
    return text.lower() if lowercase else text

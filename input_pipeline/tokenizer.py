"""Captions to token ids and back: byte-level BPE, and the compact vocabulary that the decoder predicts over.

`Tokenizer` knows *full* ids, the ids of the tokenizer's own files (RoBERTa's 50,265, say). `Vocabulary` is the one
place that maps them to and from *compact* ids: the specials and the tokens that occur in the training captions, so that
the decoder's output layer carries no row it can never learn. Everything outside this file speaks compact ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError, DataError, MissingFileError
from input_pipeline.files import write_atomically
from input_pipeline.special_tokens import BOS, EOS, FEWEST_TOKENS, MASK, PAD, SPECIALS, UNK

_WORD_START = "\u0120"  # how byte-level BPE writes the space before a word
_VOCAB, _MERGES, _SETTINGS, _COMPACT = "vocab.json", "merges.txt", "tokenizer_settings.json", "vocabulary.json"


class Tokenizer:
    """Byte-level BPE with RoBERTa's special tokens; ids are those of its `vocab.json`.

    Special tokens are never read from text: a caption that contains the characters `</s>` is just those characters.

    Args:
        model: the BPE model; its vocabulary must give `<s>`, `<pad>`, `</s>`, `<unk>` the ids 0, 1, 2, 3.
        lowercase: whether text is lower-cased before it is split.
        add_prefix_space: whether the first word is encoded as words after a space are. Tokenizers trained here do so;
            RoBERTa does not.
    """

    def __init__(self, model: models.BPE, *, lowercase: bool, add_prefix_space: bool):
        self.lowercase = lowercase
        self.add_prefix_space = add_prefix_space
        self._backend = Backend(model)
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        self._backend.decoder = decoders.ByteLevel()
        found = tuple(self._backend.token_to_id(token) for token in SPECIALS)
        if found != (BOS, PAD, EOS, UNK):
            raise ConfigError(
                f"the tokenizer's vocabulary gives {', '.join(SPECIALS)} the ids {found}; RoBERTa's layout "
                "(0, 1, 2, 3) is needed: use a RoBERTa tokenizer, or data.tokenizer='train'"
            )
        mask = self._backend.token_to_id(MASK)
        self._special_ids = frozenset(found if mask is None else (*found, mask))

    @classmethod
    def train(cls, captions: Iterable[str], size: int, lowercase: bool = True) -> Tokenizer:
        """Trains a BPE of at most `size` tokens (specials and the 256 bytes included) on `captions`.

        Raises:
            ConfigError: `size` leaves no room for a merge.
            DataError: there are no captions.
        """
        if size < FEWEST_TOKENS:
            raise ConfigError(
                f"config.data.vocabulary_size is {size}; the bytes and special tokens alone need {FEWEST_TOKENS}"
            )
        texts = [normalise(caption, lowercase) for caption in captions]
        if not any(texts):
            raise DataError("cannot train a tokenizer: there is no training caption with text in it")
        learner = Backend(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=[*SPECIALS, MASK],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        # The learner reads special tokens in text; a tokenizer around the bare model does not.
        state = json.loads(learner.to_str())["model"]
        model = models.BPE(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])
        return cls(model, lowercase=lowercase, add_prefix_space=True)

    @classmethod
    def from_folder(
        cls, path: str | os.PathLike[str], *, lowercase: bool = False, add_prefix_space: bool = False
    ) -> Tokenizer:
        """Reads `vocab.json` and `merges.txt` (RoBERTa's layout) from a folder.

        Raises:
            MissingFileError: if one of the two files is not there; it is named.
        """
        folder = epath.Path(path)
        for name in (_VOCAB, _MERGES):
            if not (folder / name).exists():
                raise MissingFileError(
                    f"{folder / name} not found: the folder that data.tokenizer names holds {_VOCAB} and {_MERGES}"
                )
        vocab = json.loads((folder / _VOCAB).read_text())
        lines = (folder / _MERGES).read_text().split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        model = models.BPE(vocab=vocab, merges=merges)
        return cls(model, lowercase=lowercase, add_prefix_space=add_prefix_space)

    @classmethod
    def from_hub(cls, name: str, *, lowercase: bool = False, add_prefix_space: bool = False) -> Tokenizer:
        """Downloads `vocab.json` and `merges.txt` of a model such as `roberta-base`, or finds them in the cache."""
        from huggingface_hub import hf_hub_download  # imported late: most runs need no network

        try:
            vocab = hf_hub_download(name, _VOCAB)
            merges = hf_hub_download(name, _MERGES)
        except Exception as error:  # the hub's client raises a dozen kinds
            raise ConfigError(
                f"data.tokenizer is {name!r}: that is no folder here, and {_VOCAB} and {_MERGES} could not be had from "
                f"the hub under this name ({type(error).__name__}: {error})"
            ) from error
        model = models.BPE.from_file(vocab, merges)
        return cls(model, lowercase=lowercase, add_prefix_space=add_prefix_space)

    @property
    def size(self) -> int:
        """Number of tokens in the tokenizer's own vocabulary."""
        return self._backend.get_vocab_size()

    @property
    def special_ids(self) -> frozenset[int]:
        """Full ids that stand for no text."""
        return self._special_ids

    def encode(self, text: str) -> list[int]:
        """Full ids of a caption, `<s>` and `</s>` included."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Full ids of many captions at once (tens of thousands a second)."""
        cleaned = [normalise(text, self.lowercase) for text in texts]
        return [[BOS, *encoding.ids, EOS] for encoding in self._backend.encode_batch_fast(cleaned)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of full ids; special tokens are skipped, white space at the ends is dropped."""
        kept = [int(i) for i in ids if int(i) not in self._special_ids]
        return self._backend.decode(kept, skip_special_tokens=False).strip()

    def name(self, token: int) -> str:
        """The tokenizer's own name of a full id, such as "<s>", or "\u0120dog" for a word's beginning."""
        return self._backend.id_to_token(token)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Text of each token by itself, for labels under pictures; a part of a character shows as U+FFFD."""
        specials = {i: self._backend.id_to_token(i) for i in self._special_ids}
        return [specials.get(int(i)) or self._backend.decode([int(i)], skip_special_tokens=False) for i in ids]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer into `folder` (made if need be), for `Tokenizer.load`."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as local:  # the library knows local disks only
            for path in self._backend.model.save(local):
                write_atomically(folder / Path(path).name, Path(path).read_bytes())
        settings = {"lowercase": self.lowercase, "add_prefix_space": self.add_prefix_space}
        write_atomically(folder / _SETTINGS, json.dumps(settings) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Reads what `save` wrote."""
        settings = json.loads((epath.Path(folder) / _SETTINGS).read_text())
        return cls.from_folder(folder, **settings)


class Vocabulary:
    """The tokens a decoder predicts over, and the one mapping between their compact ids and the tokenizer's full ids.

    Compact ids: 0 `<s>`, 1 `<pad>`, 2 `</s>`, 3 `<unk>`, then `full_ids` in ascending order.

    Args:
        tokenizer: the tokenizer whose ids are mapped.
        full_ids: full ids of the tokens to keep; those of special tokens are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, full_ids: Iterable[int]):
        kept = sorted({int(i) for i in full_ids} - {BOS, PAD, EOS, UNK})
        if kept and not 0 <= kept[-1] < tokenizer.size:
            raise ValueError(f"token id {kept[-1]} is not in the tokenizer, which has {tokenizer.size} tokens")
        self.tokenizer = tokenizer
        self._to_full = np.array([BOS, PAD, EOS, UNK, *kept], np.int32)
        self._to_compact = np.full(tokenizer.size, UNK, np.int32)
        self._to_compact[self._to_full] = np.arange(len(self._to_full), dtype=np.int32)

    @property
    def size(self) -> int:
        """Number of compact ids: the width of the decoder's output."""
        return len(self._to_full)

    def to_full(self, ids: Int[np.ndarray, ...] | Sequence[int]) -> Int[np.ndarray, ...]:
        """Full ids of compact ids, of any shape (for a text encoder that keeps the tokenizer's own embedding)."""
        return self._to_full[np.asarray(ids)]

    def to_compact(self, ids: Int[np.ndarray, ...] | Sequence[int]) -> Int[np.ndarray, ...]:
        """Compact ids of full ids, of any shape; a token outside the vocabulary becomes `<unk>`."""
        return self._to_compact[np.asarray(ids, np.int32)]

    def encode(self, text: str, max_length: int) -> Int[np.ndarray, " max_length"]:
        """Compact ids `<s> ... </s>` of a caption, padded with `<pad>`; `encode_batch` says how long ones are cut."""
        return self.encode_batch([text], max_length)[0]

    def encode_batch(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "captions max_length"]:
        """Compact ids of many captions, one a row.

        A caption of more than `max_length` tokens is cut and has no `</s>`: with one, the model would be taught to stop
        in mid-sentence.
        """
        return self._to_compact[self.encode_full_batch(texts, max_length)]

    def encode_full_batch(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "texts max_length"]:
        """Full ids of many texts, cut and padded as `encode_batch` does; no token of the tokenizer is unknown."""
        rows = np.full((len(texts), max_length), PAD, np.int32)
        for row, ids in zip(rows, self.tokenizer.encode_batch(texts), strict=True):
            ids = ids[:max_length]
            row[: len(ids)] = ids
        return rows

    def decode(self, ids: Iterable[int]) -> str:
        """Text of compact ids up to the first `</s>`; special tokens are skipped."""
        kept: list[int] = []
        for token in np.asarray(ids).tolist():
            if token == EOS:
                break
            kept.append(token)
        return self.tokenizer.decode(self._to_full[np.array(kept, np.int32)].tolist())

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Text of each token by itself; see `Tokenizer.pieces`."""
        return self.tokenizer.pieces(self.to_full(list(ids)).tolist())

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokenizer's own name of each token, by compact id: what tells whether two vocabularies share it."""
        return tuple(self.tokenizer.name(int(i)) for i in self._to_full)

    def words_with_spans(self, ids: Iterable[int]) -> list[tuple[str, int, int]]:
        """The words of compact ids up to `</s>`, each with its first place and the one after its last."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        starts = [place for place, i in enumerate(ids) if place == 0 or self.tokens[i].startswith(_WORD_START)]
        ends = [*starts[1:], len(ids)]
        return [(self.decode(ids[start:end]), start, end) for start, end in zip(starts, ends, strict=False)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer and the mapping into `folder`, for `Vocabulary.load`."""
        self.tokenizer.save(folder)
        # The mapping goes last: a folder that has it is complete.
        full_ids = self._to_full[len(SPECIALS) :].tolist()
        write_atomically(epath.Path(folder) / _COMPACT, json.dumps({"full_ids": full_ids}) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Vocabulary:
        """Reads what `save` wrote.

        Raises:
            MissingFileError: if `folder` holds no vocabulary.
        """
        path = epath.Path(folder) / _COMPACT
        if not path.exists():
            raise MissingFileError(f"{path} not found: a workdir's vocabulary is written when training starts")
        return cls(Tokenizer.load(folder), json.loads(path.read_text())["full_ids"])

    def fingerprint(self) -> str:
        """A hash of the tokenizer and the mapping: the same for vocabularies that are equal."""
        tokenizer = self.tokenizer
        parts = [tokenizer.lowercase, tokenizer.add_prefix_space, tokenizer._backend.to_str(), self._to_full.tolist()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        mine, theirs = self.tokenizer, other.tokenizer
        return (
            np.array_equal(self._to_full, other._to_full)
            and (mine.lowercase, mine.add_prefix_space) == (theirs.lowercase, theirs.add_prefix_space)
            and mine._backend.to_str() == theirs._backend.to_str()
        )

    __hash__ = None


def build_vocabulary(spec: DataSpec, train_captions: Iterable[str]) -> Vocabulary:
    """The vocabulary of a run, from `config.data` and the captions of the training split.

    Args:
        spec: `tokenizer` ("train", a folder or a hub name), `vocabulary_size`, `lowercase` and
            `compact_vocabulary`.
        train_captions: every training caption.
    """
    captions = list(train_captions)
    if spec.tokenizer == "train":
        tokenizer = Tokenizer.train(captions, spec.vocabulary_size, spec.lowercase)
    elif Path(spec.tokenizer).is_dir():
        tokenizer = Tokenizer.from_folder(spec.tokenizer, lowercase=spec.lowercase)
    else:
        tokenizer = Tokenizer.from_hub(spec.tokenizer, lowercase=spec.lowercase)
    if not spec.compact_vocabulary:
        return Vocabulary(tokenizer, range(tokenizer.size))
    occurring: set[int] = set()
    occurring.update(*tokenizer.encode_batch(captions))
    return Vocabulary(tokenizer, occurring)


def normalise(text: str, lowercase: bool) -> str:
    """A caption with single spaces, none at its ends, lower-cased if asked."""
    text = " ".join(text.split())
    return text.lower() if lowercase else text

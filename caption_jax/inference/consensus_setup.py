"""The words of a vocabulary and the document frequencies for `config.decode.consensus_weight`.

CIDEr-D weights n-grams by their document frequencies in the training captions. They are counted where the training data
is at hand, and stored in the workdir for `caption` and `index`, which do not open the data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load, save

from caption_jax.decoding.consensus import Consensus
from caption_jax.errors import MissingFileError, WorkdirError
from caption_jax.metrics.ngrams import count_ngrams
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.rewards.caption_words import build_word_table
from caption_jax.rewards.frequency_table import FrequencyTable
from caption_jax.rewards.reference_frequencies import count_references
from caption_jax.rewards.word_keys import TextHash, as_integers
from caption_jax.runs.description import RunDescription
from caption_jax.specs import DecodeSpec
from input_pipeline.files import storage_path, write_atomically
from input_pipeline.records import Split

FILE_NAME = "document_frequencies.safetensors"
_DTYPES = {
    "seed": np.int64,
    "keys": np.uint32,
    "weights": np.float32,
    "default_weight": np.float32,
    "references": np.uint8,
}


def make_consensus(
    spec: DecodeSpec, description: RunDescription, workdir: str | os.PathLike[str] | None, train: Split | None = None
) -> Consensus:
    """Collects what `decode` needs to rank candidates by `spec.consensus_metric`.

    Args:
        spec: the `decode` section.
        description: the run description.
        workdir: workdir of the run, with the document frequencies; None if there is none.
        train: the training split, if it is open. Its document frequencies are then stored in the workdir.

    Raises:
        MissingFileError: the document frequencies are required, but neither stored nor counted.
        WorkdirError: their file is damaged.
    """
    vocabulary = description.vocabulary
    if spec.consensus_metric != "CIDEr-D":
        return Consensus(build_word_table(vocabulary, (), TextHash(0)))
    path = storage_path(workdir or "") / FILE_NAME
    if train is None:
        seed, frequencies = read_frequencies(path)
    else:
        seed, frequencies = _count_and_store(train, path)
    return Consensus(build_word_table(vocabulary, (), TextHash(seed)), frequencies)


def _count_and_store(train: Split, path: epath.Path) -> tuple[int, FrequencyTable]:
    captions = [record.captions for record in train]
    counted = count_ngrams(tokenize_all(train.captions))
    seed, _, frequencies = count_references(counted, [len(texts) for texts in captions])
    if jax.process_index() == 0:
        content = to_bytes(seed, frequencies, _hash_references(captions))
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)
    return seed, frequencies


def to_bytes(seed: int, frequencies: FrequencyTable, references: bytes) -> bytes:
    """Serialises document frequencies.

    Args:
        seed: seed of the hash of n-grams.
        frequencies: the document frequencies.
        references: SHA-256 of the captions in which they were counted.
    """
    arrays = {
        "seed": np.array([seed], np.int64),
        "keys": frequencies.keys,
        "weights": frequencies.weights,
        "default_weight": np.array([frequencies.default_weight], np.float32),
        "references": np.frombuffer(references, np.uint8),
    }
    return save(arrays)


def read_frequencies(path: epath.Path) -> tuple[int, FrequencyTable]:
    """Reads the output of `to_bytes`: the seed of the hash and the document frequencies.

    Raises:
        MissingFileError: the file does not exist.
        WorkdirError: it is damaged.
    """
    if not path.exists():
        raise MissingFileError(
            f"{path} is missing: CIDEr-D of config.decode.consensus_weight requires the document frequencies of the "
            "training captions, which evaluate and tune store with the same setting where the training data is; "
            "otherwise set --config.decode.consensus_metric=ROUGE-L"
        )
    try:
        arrays = load(path.read_bytes())
        if {name: array.dtype for name, array in arrays.items()} != _DTYPES:
            raise ValueError(f"it has the arrays {', '.join(arrays)[:100]}")
        seed, keys, weights, default = (arrays[name] for name in ("seed", "keys", "weights", "default_weight"))
        if keys.ndim != 2 or keys.shape != (len(weights), 2) or seed.shape != (1,) or default.shape != (1,):
            raise ValueError("its arrays have invalid shapes")
        integers, largest = as_integers(keys), float(default[0])
        is_sorted = len(keys) > 0 and bool((integers[1:] > integers[:-1]).all())
        if not is_sorted or seed[0] < 0 or not (weights.min() >= 0 and weights.max() <= largest < np.inf):
            raise ValueError("its numbers are invalid")
    except (SafetensorError, ValueError, IndexError) as error:
        raise WorkdirError(
            f"{path} is damaged ({str(error)[:200]}): delete it; evaluate and tune write it again"
        ) from error
    return int(seed[0]), FrequencyTable(keys, weights, np.float32(largest))


def _hash_references(captions: Sequence[Sequence[str]]) -> bytes:
    digest = hashlib.sha256()
    for texts in captions:
        digest.update("\n".join([*texts, ""]).encode("utf-8", "surrogatepass") + b"\n")
    return digest.digest()

"""The vocabulary's words and the document frequencies for `config.decode.consensus_weight`.

CIDEr-D weights n-grams by their document frequencies in the training captions. They are counted where the training data
is at hand, and stored in the workdir for `caption` and `index`, which do not open the data.
"""

from __future__ import annotations

import hashlib
import os

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load, save

from caption_jax.decoding.consensus import Consensus
from caption_jax.decoding.token_ngrams import NgramFrequencies, count_documents, find_words
from caption_jax.errors import MissingFileError, WorkdirError
from caption_jax.runs.description import RunDescription
from caption_jax.specs import DecodeSpec
from input_pipeline.files import storage_path, write_atomically
from input_pipeline.records import Split
from input_pipeline.special_tokens import BOS, EOS, PAD, UNK

FILE_NAME = "document_frequencies.safetensors"
_DTYPES = {"images": np.int64, "hashes": np.uint32, "counts": np.int32, "references": np.uint8}
_SPECIAL_IDS = (BOS, PAD, EOS, UNK)


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
    is_word = find_words(description.vocabulary, _SPECIAL_IDS)
    if spec.consensus_metric != "CIDEr-D":
        return Consensus(is_word)
    path = storage_path(workdir or "") / FILE_NAME
    if train is None:
        return Consensus(is_word, read_frequencies(path))
    captions = [record.captions for record in train]
    frequencies = count_documents(captions, description.vocabulary, is_word, description.model_settings.max_length)
    if jax.process_index() == 0:
        content = to_bytes(frequencies, _hash_references(captions))
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)
    return Consensus(is_word, frequencies)


def to_bytes(frequencies: NgramFrequencies, references: bytes) -> bytes:
    """Serialises document frequencies, with the SHA-256 of the captions in which they were counted."""
    arrays = {
        "images": np.array([frequencies.images], np.int64),
        "hashes": frequencies.hashes,
        "counts": frequencies.counts,
        "references": np.frombuffer(references, np.uint8),
    }
    return save(arrays)


def read_frequencies(path: epath.Path) -> NgramFrequencies:
    """Reads the output of `to_bytes`.

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
        images, hashes, counts = int(arrays["images"][0]), arrays["hashes"], arrays["counts"]
        is_valid = hashes.ndim == 1 and hashes.shape == counts.shape and (hashes[1:] > hashes[:-1]).all()
        if not is_valid or images < 1 or (len(counts) and not 1 < counts.min() <= counts.max() <= images):
            raise ValueError("its numbers are invalid")
    except (SafetensorError, ValueError, IndexError) as error:
        raise WorkdirError(
            f"{path} is damaged ({str(error)[:200]}): delete it; evaluate and tune write it again"
        ) from error
    return NgramFrequencies(images, hashes, counts)


def _hash_references(captions: list) -> bytes:
    digest = hashlib.sha256()
    for texts in captions:
        digest.update("\n".join([*texts, ""]).encode("utf-8", "surrogatepass") + b"\n")
    return digest.digest()

"""Files of exported folders that need none of our code: settings, text and the captioner itself."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version

import jax
from etils import epath

from caption_jax.export.captioner_source import read_captioner
from caption_jax.export.card_facts import RunFacts
from caption_jax.export.model_card import write_card
from caption_jax.runs.artifact import CARD
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import Model
from input_pipeline.files import write_atomically
from input_pipeline.tokenizer import Vocabulary


def write_portable_files(
    folder: epath.Path, model: Model, facts: RunFacts, *, captioner: str, usage: str, library: str
) -> None:
    """Writes preprocessing.json, tokenizer.json, vocabulary.json, captioner.py and the model card to a new folder.

    Args:
        folder: the folder.
        model: the model.
        facts: facts about its run.
        captioner: module that becomes captioner.py; see `read_captioner`.
        usage: how to caption an image, in Markdown.
        library: the library that runs the model, as the Hub names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = model.description
    write_atomically(folder / "preprocessing.json", description.preprocessing.to_json() + "\n")
    write_atomically(folder / "tokenizer.json", description.vocabulary.tokenizer.to_json() + "\n")
    write_atomically(folder / "vocabulary.json", json.dumps(token_bytes(description.vocabulary), indent=0) + "\n")
    write_atomically(folder / "captioner.py", read_captioner(captioner))
    write_atomically(folder / CARD, write_card(model, facts, usage, library))


def token_bytes(vocabulary: Vocabulary) -> list[str]:
    """Returns the UTF-8 bytes of each token by compact id, one character per byte; "" for special tokens.

    Captions join the bytes of their tokens: a character can consist of several tokens.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # byte-level BPE writes these as they are
    others = [byte for byte in range(256) if byte not in printable]
    to_byte = {chr(byte): chr(byte) for byte in printable}
    to_byte |= {chr(256 + index): chr(byte) for index, byte in enumerate(others)}
    special = vocabulary.tokenizer.special_ids
    ids = vocabulary.to_full(range(vocabulary.size)).tolist()
    return [
        "" if full_id in special else "".join(map(to_byte.__getitem__, token))
        for full_id, token in zip(ids, vocabulary.tokens, strict=True)
    ]


def to_portable(description: RunDescription, ops: str, dtype: str = "") -> RunDescription:
    """Returns the description of a model whose program does not depend on the device that exports it.

    Args:
        description: description of the run.
        ops: implementation of the operations, as in `config.model.ops`.
        dtype: computation dtype; "" for that of the run, or float32 if `config.dtype` is "auto".
    """
    spec = description.spec
    dtype = dtype or ("float32" if spec.dtype == "auto" else spec.dtype)
    spec = dataclasses.replace(spec, dtype=dtype, model=dataclasses.replace(spec.model, ops=ops))
    return dataclasses.replace(description, spec=spec)


def versions(*packages: str) -> dict[str, str]:
    """Returns the installed versions of JAX and of other packages."""
    return {"jax": jax.__version__, **{package: version(package) for package in packages}}

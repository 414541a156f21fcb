"""Files of a tokenizer, whose contents are checked: the library that uses them ends the thread if they are damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import models

from input_pipeline.errors import DataError

if TYPE_CHECKING:
    from etils import epath

_MAX_BYTES = 2**26  # of a file; that of RoBERTa has 0.9 MB
_MAX_TOKENS = 2**22
_REMEDY = "restore it from a copy, or download the tokenizer again"


def read_bpe(vocab_file: epath.Path, merges_file: epath.Path) -> models.BPE:
    """Reads a BPE model in RoBERTa's layout.

    Raises:
        DataError: a file is damaged, or the files do not belong together.
    """
    vocab = read_json(vocab_file)
    if not all(type(token_id) is int for token_id in vocab.values()):
        raise DataError(f"{vocab_file} maps tokens to other values than whole numbers: {_REMEDY}")
    if set(vocab.values()) != set(range(len(vocab))) or not 0 < len(vocab) <= _MAX_TOKENS:
        raise DataError(f"{vocab_file} does not number its {len(vocab):,} tokens from 0 without gaps: {_REMEDY}")
    merges, text = [], _read_text(merges_file)
    if not text.strip("\n\x00 "):
        raise DataError(f"{merges_file} is empty: {_REMEDY}")
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.startswith("#version"):
            pair = tuple(line.split(" "))
            if len(pair) != 2 or any(token not in vocab for token in (*pair, "".join(pair))):
                raise DataError(
                    f"{merges_file}, line {number}: {line!r:.80} is no pair of tokens of {vocab_file.name}: {_REMEDY}"
                )
            merges.append(pair)
    try:
        return models.BPE(vocab=vocab, merges=merges)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is not an Exception
        raise DataError(f"{vocab_file} and {merges_file} are damaged ({str(error)[:200]}): {_REMEDY}") from error


def read_settings(file: epath.Path) -> dict[str, bool]:
    """Reads the settings of a tokenizer.

    Raises:
        DataError: the file is damaged.
    """
    settings = read_json(file)
    expected = {"lowercase", "add_prefix_space"}
    if settings.keys() != expected or not all(isinstance(value, bool) for value in settings.values()):
        raise DataError(f"{file} must set {' and '.join(sorted(expected))} to true or false: {_REMEDY}")
    return settings


def read_full_ids(file: epath.Path, tokens: int) -> list[int]:
    """Reads the ids of a compact vocabulary.

    Args:
        file: the file.
        tokens: number of tokens of the tokenizer.

    Raises:
        DataError: the file is damaged, or belongs to another tokenizer.
    """
    ids = read_json(file).get("full_ids")
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise DataError(f"{file}: full_ids is not a list of whole numbers: {_REMEDY}")
    if outside := [number for number in ids if not 0 <= number < tokens]:
        raise DataError(f"{file}: full_ids has {outside[0]}, but the tokenizer has {tokens:,} tokens: {_REMEDY}")
    return ids


def read_json(file: epath.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: the file is missing or does not contain one.
    """
    try:
        content = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is damaged ({str(error)[:200]}): {_REMEDY}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is damaged (it contains a {type(content).__name__} instead of an object): {_REMEDY}")
    return content


def _read_text(file: epath.Path) -> str:
    try:
        if file.stat().length > _MAX_BYTES:
            raise DataError(f"{file} has more than {_MAX_BYTES:,} bytes: {_REMEDY}")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing: {_REMEDY}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is damaged (it is not text in UTF-8): {_REMEDY}") from error

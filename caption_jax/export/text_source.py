"""Text of token ids, and the command line. Exported captioners contain this code (see `captioner_source`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

EOS = 2  # id of </s>


def decode_text(ids: Sequence[int], tokens: Sequence[str]) -> str:
    """Returns the text of ids up to </s>. Each character of `tokens`, from vocabulary.json, is a byte of UTF-8."""
    ids = list(ids)
    text = "".join(tokens[index] for index in (ids[: ids.index(EOS)] if EOS in ids else ids))
    return text.encode("latin-1").decode(errors="replace").strip()


def print_captions(caption: Callable[[list[str]], list[str]]) -> None:
    """Prints a line per image of the command line: its path, a tab and its caption, or the error to stderr."""
    if not sys.argv[1:]:
        sys.exit("usage: python captioner.py IMAGE [IMAGE ...]")
    status = 0
    for path in sys.argv[1:]:
        try:
            print(f"{path}\t{caption([path])[0]}")
        except OSError as error:  # also if Pillow does not know the format
            print(f"{path}: {error}", file=sys.stderr)
            status = 1
    sys.exit(status)

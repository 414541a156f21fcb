"""The tokenization of the COCO caption tools without Java: PTB tokens in lower case, punctuation removed.

COCO's tools pipe captions through Stanford CoreNLP 3.4.1's `PTBTokenizer` (`-preserveLines -lowerCase`). This is a port
by behaviour: nothing here comes from that program, but on captions it gives what that program gives, quirks included
(brackets become `-lrb-` and stay, since COCO's list of punctuation has them in upper case only). docs/metrics.md lists
what still differs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from caption_jax.metrics.ptb.tokens import split

# The COCO tools drop these.
PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# What can make a token, or decide about one, across a space: markup, telephone numbers and fractions, "no. 5", "plan b.
# The", and white space that is no space.
_SPANS_SPACES = re.compile(r"[<\u00a0]|[^\S ]|&nbsp;|[\d)] \d|\. +\d|(?<![A-Za-z])[A-Za-z]\.(?: |$)")

_remembered: dict[str, str] = {}
_REMEMBER_AT_MOST = 200_000


def tokenize(caption: str, following: str = "") -> str:
    """The tokens of a caption, joined by spaces.

    Args:
        caption: one caption; line breaks in it count as spaces.
        following: the caption after it in the file that the reference would read; see `tokens.split`.
    """
    line = caption.replace("\n", " ")
    if _SPANS_SPACES.search(line) or (line.endswith(".") and following[:1].isdigit()):
        return " ".join(token for token in split(line, following) if token not in PUNCTUATION)
    # Nothing reaches across a space, so each chunk between spaces always gives the same tokens.
    return " ".join(filter(None, map(_chunk, line.split(" "))))


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """The tokens of many captions, each with the next one as its following line, as when the reference reads them."""
    return [tokenize(caption, following) for caption, following in zip(captions, [*captions[1:], ""], strict=True)]


def forget() -> None:
    """Drops what is remembered of chunks, as in a new process; for timings."""
    _remembered.clear()


def _chunk(chunk: str) -> str:
    known = _remembered.get(chunk)
    if known is None:
        if len(_remembered) >= _REMEMBER_AT_MOST:
            _remembered.clear()
        known = " ".join(token for token in split(chunk) if token not in PUNCTUATION)
        _remembered[chunk] = known
    return known

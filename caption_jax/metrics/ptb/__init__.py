"""PTB tokenization as in COCO's caption tools, without Java: lower-case tokens with punctuation removed.

COCO's tools pipe captions through Stanford CoreNLP 3.4.1's `PTBTokenizer` (`-preserveLines -lowerCase`). This port was
derived from that program's output, not from its code, and reproduces its output on captions, including quirks: brackets
become `-lrb-` and are not removed, because COCO's punctuation list contains them in upper case only. docs/metrics.md
lists the remaining differences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from caption_jax.metrics.ptb.tokens import split

# Tokens removed by COCO's tools.
PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# Constructs whose tokenization depends on text across a space: markup, telephone numbers, fractions, "no. 5",
# "plan b. The", and whitespace characters other than a space.
_SPANS_SPACES = re.compile(r"[<\u00a0]|[^\S ]|&nbsp;|[\d)] \d|\. +\d|(?<![A-Za-z])[A-Za-z]\.(?: |$)")

_cache: dict[str, str] = {}  # chunk without spaces -> tokens
_MAX_CACHED_CHUNKS = 200_000


def tokenize(caption: str, next_line: str = "") -> str:
    """Tokenizes a caption and joins the tokens with spaces.

    Args:
        caption: one caption; line breaks are treated as spaces.
        next_line: the next caption; see `tokens.split`.
    """
    line = caption.replace("\n", " ")
    if _SPANS_SPACES.search(line) or (line.endswith(".") and next_line[:1].isdigit()):
        return " ".join(token for token in split(line, next_line) if token not in PUNCTUATION)
    # No token depends on text across a space, so the chunks between spaces can be tokenized and cached separately.
    return " ".join(filter(None, map(_tokenize_chunk, line.split(" "))))


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """Tokenizes captions as consecutive lines of one file, like the reference tokenizer."""
    next_lines = [*captions[1:], ""]
    return [tokenize(caption, next_line) for caption, next_line in zip(captions, next_lines, strict=True)]


def clear_cache() -> None:
    """Clears the cache of tokenized chunks; intended for benchmarks."""
    _cache.clear()


def _tokenize_chunk(chunk: str) -> str:
    tokens = _cache.get(chunk)
    if tokens is None:
        if len(_cache) >= _MAX_CACHED_CHUNKS:
            _cache.clear()
        tokens = " ".join(token for token in split(chunk) if token not in PUNCTUATION)
        _cache[chunk] = tokens
    return tokens

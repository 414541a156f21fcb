"""Random strings of several kinds, unlike captions, that expose differences between tokenizers.

The same seed gives the same strings.
"""

from __future__ import annotations

import random

_ASCII = "".join(map(chr, range(32, 127)))
_UNICODE = "".join(
    chr(code)
    for low, high in (
        (0xA0, 0x250),
        (0x300, 0x330),
        (0x370, 0x500),
        (0x2000, 0x2028),
        (0x202F, 0x2070),
        (0x2100, 0x2200),
    )
    for code in range(low, high)
)
_ADDRESS_STARTS = ["http://", "www.", "https://", "", "", "@", "#", "foo@", "http:/"]
_ADDRESS_PARTS = [*"abcxyzAB019abcxyzAB019./-_:?=&!,()~…’ @./", ".com", ".org", ".jpg", ".c"]
_TAG_PARTS = [*"<>ab=\"'  !?1-_:.", "</", "/>", "br", "--", "x y"]
_ENTITY_PARTS = [
    *"&;aBs 1.",
    "do",
    "&amp;",
    "&lt;",
    "&gt;",
    "&quot;",
    "&apos;",
    "&nbsp;",
    "&mdash;",
    "&eacute;",
    "&#39;",
]

# Kind: (first parts, other parts, minimum and maximum number of other parts).
_KINDS: dict[str, tuple[list[str], list[str], int, int]] = {
    "ASCII": ([""], [*_ASCII, *"   aeiouAst019"], 2, 20),
    "numbers": ([""], [*"012345678901234567890123456789.,:/-–+()$%#½¼ '\"xskmA    "], 2, 18),
    "full stops and hyphens": ([""], [*"abcABCabcABC.....  -!?,1é"], 3, 16),
    "apostrophes": ([""], [*"aeioumnstdlrvONSDML'''''’’‘` -1"], 3, 14),
    "addresses": (_ADDRESS_STARTS, _ADDRESS_PARTS, 2, 12),
    "faces": ([""], [*":;=)(-'*oODPp@|[]\\{}<>^_x~ .a1"], 2, 8),
    "markup": ([""], _TAG_PARTS, 3, 12),
    "entities": ([""], _ENTITY_PARTS, 2, 8),
    "other scripts and symbols": ([""], [*_UNICODE, *"日本語中文한국어あいう😀👍❤️☀" * 4, *"abcde .,-'1" * 30], 2, 14),
}
KINDS = tuple(_KINDS)


def make_adversarial_lines(kind: str, count: int, seed: int = 0) -> list[str]:
    """Returns `count` random lines of one of the `KINDS`, such as letters mixed with apostrophes."""
    first, others, min_parts, max_parts = _KINDS[kind]
    rng = random.Random(f"{kind} {seed}")
    lines = (
        rng.choice(first) + "".join(rng.choice(others) for _ in range(rng.randint(min_parts, max_parts)))
        for _ in range(count)
    )
    return [" ".join(line.splitlines()).strip() for line in lines]

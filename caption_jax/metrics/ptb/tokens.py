"""Splits a line into PTB tokens; the longest matching rule wins."""

from __future__ import annotations

import functools
import re

from caption_jax.metrics.ptb.characters import REPLACEMENTS, SYMBOLS
from caption_jax.metrics.ptb.token_rules import RULES, Rule

_SPACE = re.compile(r"[\s\u00a0]+")
_BRACKETS = re.compile(r"[()\[\]{}]")
_SYMBOL = re.compile(f"[!-/:-@\\[-`{{-~{SYMBOLS}{re.escape(''.join(REPLACEMENTS))}]")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "", "&mdash;": "--", "&ndash;": "--", "&md;": "--"}
_EXACT_ENTITIES = {"&quot;": "''", "&apos;": "'"}  # case-sensitive, unlike the others


def split(line: str, following: str = "") -> list[str]:
    """Splits a line into lower-cased tokens; spaces inside a token become no-break spaces, as in the reference.

    Args:
        line: the text.
        following: the next line. The reference tokenizer reads a whole file, and the first word of the next line
            determines whether it splits off the period after a single letter at the end of a line ("plan b.").
    """
    text = f"{line}\n{following[:40]}\n"
    tokens: list[str] = []
    position, end = 0, len(line)
    while position < end:
        space = _SPACE.match(text, position)
        if space:
            position = space.end()
            continue
        kind, length = _longest(text, position)
        token = _normalise(kind, text[position : position + length])
        if token:
            tokens.append(token.lower())
        position += length
    return tokens


def _longest(text: str, position: int) -> tuple[str, int]:
    """Kind and length of the token at `position`; ("character", 1) if no rule matches."""
    match_end, kind, end = position, "character", position + 1
    for rule in _rules_for(text[position]):
        match = rule.pattern.match(text, position)
        if match and match.end() > match_end:
            match_end, kind = match.end(), rule.kind
            end = match.end("token") if "token" in rule.pattern.groupindex else match_end
    return kind, end - position


@functools.lru_cache(maxsize=512)
def _rules_for(first: str) -> tuple[Rule, ...]:
    """Rules that can match text starting with `first`; most characters leave only a few."""
    return tuple(rule for rule in RULES if rule.first.match(first))


def _normalise(kind: str, text: str) -> str:  # noqa: C901 - one case per kind of token
    """Formats a token as the reference tokenizer prints it."""
    match kind:
        case "word":
            return text.replace("\u00ad", "")
        case "contraction":
            text = re.sub("['’\x92]|&apos;", "'", text)
            return re.sub("[‘‛\x91]", "`", text)
        case "number":
            return text.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0")
        case "markup":
            return re.sub("[ \t]", "\u00a0", text)
        case "ampersand":
            return re.sub("&amp;", "&", text, flags=re.IGNORECASE)
        case "entity":
            return _EXACT_ENTITIES.get(text, _ENTITIES.get(text.lower(), text))
        case "quotes":
            return "".join(REPLACEMENTS.get(mark, mark) for mark in text)
        case "dashes":
            return "--" if 2 <= len(text) <= 4 else text
        case "dots":
            return "..."
        case "emoticon":
            return text.replace("(", "-lrb-").replace(")", "-rrb-")
        case _:
            return REPLACEMENTS.get(text, text) if _SYMBOL.match(text) else ""

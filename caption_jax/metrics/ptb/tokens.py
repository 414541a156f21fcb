"""Splits a line into PTB tokens by the rules, longest first."""

from __future__ import annotations

import functools
import re

from caption_jax.metrics.ptb.characters import REPLACEMENTS, SYMBOLS
from caption_jax.metrics.ptb.token_rules import RULES, Rule

_SPACE = re.compile(r"[\s\u00a0]+")
_BRACKETS = re.compile(r"[()\[\]{}]")
_SYMBOL = re.compile(f"[!-/:-@\\[-`{{-~{SYMBOLS}{re.escape(''.join(REPLACEMENTS))}]")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "", "&mdash;": "--", "&ndash;": "--", "&md;": "--"}
_EXACT_ENTITIES = {"&quot;": "''", "&apos;": "'"}  # in other cases they stay as they are


def split(line: str, following: str = "") -> list[str]:
    """The tokens of one line, lower-cased; spaces inside a token are no-break spaces, as the reference writes them.

    Args:
        line: the text.
        following: the line after it. The reference reads a whole file, and whether it takes the stop off a single
            letter at the end of a line ("plan b.") depends on the next line's first word.
    """
    text = f"{line}\n{following[:40]}\n"
    tokens: list[str] = []
    place, end = 0, len(line)
    while place < end:
        space = _SPACE.match(text, place)
        if space:
            place = space.end()
            continue
        kind, length = _longest(text, place)
        token = _write(kind, text[place : place + length])
        if token:
            tokens.append(token.lower())
        place += length
    return tokens


def _longest(text: str, place: int) -> tuple[str, int]:
    """Kind and length of the token at `place`; kind "character" and 1 if no rule matches."""
    best_reach, kind, end = place, "character", place + 1
    for rule in _rules_for(text[place]):
        match = rule.pattern.match(text, place)
        if match and match.end() > best_reach:
            best_reach, kind = match.end(), rule.kind
            end = match.end("token") if "token" in rule.pattern.groupindex else best_reach
    return kind, end - place


@functools.lru_cache(maxsize=512)
def _rules_for(first: str) -> tuple[Rule, ...]:
    """The rules that some text beginning with `first` can match; most rules fall away for most characters."""
    return tuple(rule for rule in RULES if rule.first.match(first))


def _write(kind: str, text: str) -> str:  # noqa: C901 - one case for each kind of token
    """What the reference prints for a token."""
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
        case "face":
            return text.replace("(", "-lrb-").replace(")", "-rrb-")
        case _:
            return REPLACEMENTS.get(text, text) if _SYMBOL.match(text) else ""

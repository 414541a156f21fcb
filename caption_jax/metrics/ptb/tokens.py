"""Splits a line into PTB tokens, using the longest match of any rule at each position."""

from __future__ import annotations

import functools
import re

from caption_jax.metrics.ptb.characters import REPLACEMENTS, SYMBOLS
from caption_jax.metrics.ptb.token_rules import RULES, Rule

_WHITESPACE = re.compile(r"[\s\u00a0]+")
_BRACKETS = re.compile(r"[()\[\]{}]")
_SYMBOL = re.compile(f"[!-/:-@\\[-`{{-~{SYMBOLS}{re.escape(''.join(REPLACEMENTS))}]")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "", "&mdash;": "--", "&ndash;": "--", "&md;": "--"}
_EXACT_ENTITIES = {"&quot;": "''", "&apos;": "'"}  # case-sensitive, unlike `_ENTITIES`


def split(line: str, next_line: str = "") -> list[str]:
    """Splits a line into lower-case tokens. Spaces inside a token become no-break spaces, as in the reference.

    Args:
        line: the line to split.
        next_line: the next line of the file. The reference tokenizer reads whole files, and the first word of the next
            line determines whether a period after a single letter at the end of a line ("plan b.") is split off.
    """
    text = f"{line}\n{next_line[:40]}\n"
    tokens: list[str] = []
    position, end = 0, len(line)
    while position < end:
        whitespace = _WHITESPACE.match(text, position)
        if whitespace:
            position = whitespace.end()
            continue
        kind, length = _match_longest(text, position)
        token = _normalise(kind, text[position : position + length])
        if token:
            tokens.append(token.lower())
        position += length
    return tokens


def _match_longest(text: str, position: int) -> tuple[str, int]:
    """Returns the kind and length of the token at `position`; ("character", 1) if no rule matches."""
    match_end, kind, token_end = position, "character", position + 1
    for rule in _select_rules(text[position]):
        match = rule.pattern.match(text, position)
        if match and match.end() > match_end:
            match_end, kind = match.end(), rule.kind
            token_end = match.end("token") if "token" in rule.pattern.groupindex else match_end
    return kind, token_end - position


@functools.lru_cache(maxsize=512)
def _select_rules(character: str) -> tuple[Rule, ...]:
    """Returns the rules for tokens that start with `character`, which are usually few."""
    return tuple(rule for rule in RULES if rule.first.match(character))


def _normalise(kind: str, text: str) -> str:  # noqa: C901 - one case per kind of token
    """Converts the matched text to the form in which the reference tokenizer prints it."""
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

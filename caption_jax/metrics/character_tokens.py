"""Tokenization into characters, for captions in languages that are written without spaces between words."""

from __future__ import annotations

import functools
import re
import unicodedata

# The first words of the Unicode names of characters that are tokens on their own, by script. Hangul is one of the CJK
# scripts, but Korean is written with spaces.
_UNSPACED_SCRIPTS = (
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "BOPOMOFO",
    "THAI",
    "LAO",
    "TIBETAN",
    "MYANMAR",
    "KHMER",
)
_SCRIPTS = (*_UNSPACED_SCRIPTS, "HANGUL")

_ASCII = re.compile(r"[\x00-\x7f]*")
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def tokenize_characters(caption: str) -> str:
    """Tokenizes a caption into characters and joins the tokens with spaces: "2只 Dogs。" becomes "2 只 dogs".

    1. The caption is normalised to Unicode's NFKC, which makes full-width letters and half-width kana equal to the
       usual ones, and converted to lower case.
    2. Each letter of a CJK script (Han, kana, bopomofo, Hangul) and of Thai, Lao, Tibetan, Myanmar and Khmer is a
       token. Combining marks belong to the letter before them.
    3. Each sequence of other letters, digits and marks, such as a Latin word or a number, is a token.
    4. Everything else, including punctuation, symbols and emoji, separates tokens and is removed.
    """
    text = unicodedata.normalize("NFKC", caption).lower()
    if _ASCII.fullmatch(text):
        return " ".join(_ASCII_WORD.findall(text))
    tokens: list[str] = []
    previous = ""  # kind of the last token, or "" after a separator
    for character in text:
        kind = _classify(character)
        if previous and (kind == "mark" or kind == previous == "word"):
            tokens[-1] += character
        elif kind in ("character", "word"):
            tokens.append(character)
            previous = kind
        elif kind == "":
            previous = ""
    return " ".join(tokens)


def count_unspaced(caption: str) -> int:
    """Counts the letters of scripts that are written without spaces between words."""
    return 0 if caption.isascii() else sum(map(_is_unspaced, caption))


@functools.cache
def _classify(character: str) -> str:
    """Returns "character" for a token on its own, "word" for a part of a word, "mark", or "" for a separator."""
    category = unicodedata.category(character)[0]
    if category in "LN" and _get_script(character) in _SCRIPTS and not character.isdecimal():
        return "character"
    return {"L": "word", "N": "word", "M": "mark"}.get(category, "")


@functools.cache
def _is_unspaced(character: str) -> bool:
    return _classify(character) == "character" and _get_script(character) in _UNSPACED_SCRIPTS


def _get_script(character: str) -> str:
    return re.split(r"[ -]", unicodedata.name(character, ""), maxsplit=1)[0]

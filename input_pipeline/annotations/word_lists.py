"""Captions of an image as text, lists of texts, or lists of words, which are joined.

A list of strings can be several captions or the words of one. What is plain from the format is read accordingly: a
sentence of Karpathy's format and an annotation of COCO's are one caption, the fields `tokens` and `words` hold words,
and a list within a list is one caption. Otherwise the whole file decides, because one program wrote all of its lists:
if more than half of the lists with at least two strings consist of single words only, all lists are words. A single
word has no blanks; for scripts without blanks between words, the strings must be as short as words on average.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from input_pipeline.annotations.caption_file import CaptionFile, Row
from input_pipeline.annotations.fields import CAPTION_FIELDS, TOKEN_FIELDS, normalize
from input_pipeline.terminal_text import escape_message

log = logging.getLogger(__name__)

# Scripts without blanks between words, and the mean length of a string below which the strings are words.
_UNSPACED_SCRIPTS = (
    (re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"), 3),  # Chinese and Japanese
    (re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"), 7),  # Thai, Lao, Burmese and Khmer
)
_LIST_LITERAL = re.compile(r"""\s*\[\s*(?:\[\s*)?["'].*\]\s*""", re.DOTALL)
_MAX_LITERAL = 100_000  # characters; parsing a literal takes a hundred times its size in memory
_NUMPY_GAP = re.compile(r"""(?<=['"])\s+(?=['"])""")  # numpy prints arrays of strings without commas
_TEXT_FIELDS = tuple(map(normalize, CAPTION_FIELDS))
_WORD_FIELDS = tuple(map(normalize, TOKEN_FIELDS))


class _Undecided(list):
    """A list of strings that are either captions or words.

    Attributes:
        place: the line or record that it comes from.
        has_words: whether all strings are single words.
    """

    def __init__(self, texts: list[str], place: str):
        super().__init__(texts)
        self.place = place
        self.has_words = _are_words(texts)


class CaptionParser:
    """Parses the captions in one file."""

    def __init__(self, file: CaptionFile):
        self.file = file
        self.joined = 0  # captions that were lists of words

    def parse(self, value: Any, place: str) -> list[str] | None:
        """Returns the captions of an image, or None if the value is neither text nor a list of captions.

        Args:
            value: text, a list of texts, a list of words, or a list of lists or objects with a caption field. Text may
                be the Python or JSON literal of a list, as in CSV files that pandas writes.
            place: line or record, for messages.
        """
        if isinstance(value, str):
            value = parse_list_literal(value)
            if isinstance(value, str):
                return [value]
        if not isinstance(value, list):
            return None
        if _are_strings(value):
            return _Undecided(value, place) if len(value) > 1 else value
        captions = [caption for item in value for caption in (self.parse_one(item) or (None,))]
        return captions if _are_strings(captions) else None

    def parse_one(self, value: Any, *, are_words: bool = False) -> list[str] | None:
        """Like `parse` for a value that is one caption: a list of single words is joined.

        Args:
            value: as for `parse`.
            are_words: whether a list consists of words for certain, even if some contain blanks ("ice cream").
        """
        if isinstance(value, dict):
            fields = {normalize(str(key)): item for key, item in value.items()}
            names = [name for name in (*_TEXT_FIELDS, *_WORD_FIELDS) if name in fields]
            if not names or isinstance(fields[names[0]], dict):
                return None
            return self.parse_one(fields[names[0]], are_words=names[0] in _WORD_FIELDS)
        if isinstance(value, str):
            value = parse_list_literal(value)
            if isinstance(value, str):
                return [value]
        if not isinstance(value, list) or not _are_strings(value):
            return None
        return [self.join(value)] if are_words or (len(value) > 1 and _are_words(value)) else value

    def join(self, words: list[str]) -> str:
        """Returns the caption that consists of words."""
        self.joined += 1
        return " ".join(word.strip() for word in words if word.strip())

    def finish(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yields the rows of the file, with lists of words joined, and logs how many there were.

        From the first list on, rows are collected until the end of the file, because all lists decide together.
        """
        for row in rows:
            if type(row.captions) is _Undecided:
                yield from self._decide([row, *rows])
                break
            yield row
        if self.joined:
            log.warning(
                "%s: %d captions are lists of words and were joined with blanks. If the words are captions, write one "
                "record per caption.",
                escape_message(self.file.path),
                self.joined,
            )

    def _decide(self, rows: list[Row]) -> Iterator[Row]:
        lists = [row.captions for row in rows if type(row.captions) is _Undecided]
        are_words = 2 * sum(texts.has_words for texts in lists) > len(lists)
        for row in rows:
            captions = row.captions
            if type(captions) is _Undecided:
                if are_words:
                    row.captions = [self.join(captions)]
                    if not self.file.accepts(captions.place, row.image_id, row.captions):
                        continue
                elif len(captions) > 2 and captions.has_words:
                    found = f"the captions {json.dumps(captions[:4], ensure_ascii=False)} are single words"
                    self.file.report(captions.place, f"{found}, unlike those of other records; wanted sentences")
                    continue
                else:
                    row.captions = list(captions)
            yield row


def parse_list_literal(text: str) -> Any:
    """Returns the list that a text such as `['a', 'red', 'kite']` denotes in JSON, Python or numpy, or the text."""
    if text[:1] not in "[ " or len(text) > _MAX_LITERAL or not _LIST_LITERAL.fullmatch(text):
        return text
    for parse in (json.loads, lambda text: ast.literal_eval(_NUMPY_GAP.sub(", ", text.strip()))):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return text


def _are_words(texts: list[str]) -> bool:
    """Whether strings are single words, by the rule in the module's docstring."""
    for text in texts:
        if len(text.split(None, 1)) > 1:
            return False
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        return False
    for script, length in _UNSPACED_SCRIPTS:
        lengths = [len(text) for text in texts if script.search(text)]
        if lengths and sum(lengths) >= length * len(lengths):
            return False
    return True


def _are_strings(values: list) -> bool:
    return all([isinstance(value, str) for value in values])  # a list is faster than a generator

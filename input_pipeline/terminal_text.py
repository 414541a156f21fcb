r"""Names and captions of strangers in text that people read on a terminal.

A file name can contain an escape sequence that recolours or erases the terminal, a line break that forges a line of
output, or a mark that reverses the direction of text, so that `gpj.exe` looks like `exe.jpg`. These characters are
shown as escapes, as in Python: ESC is `\x1b` and U+202E is `\u202e`. Accents, emoji, and Arabic and Hebrew text are not
changed. JSON output is exact and needs none of this.
"""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, marks of text direction, and lone surrogates, which stand for the
# bytes of file names that are not valid UTF-8.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPE_SEQUENCE = re.compile(r"\\[\\nrtxuU]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape(text: object) -> str:
    r"""Returns a name or caption on one line, without characters that affect the terminal.

    The result is unambiguous: if it contains an escape, or if the text itself contains what looks like one, all
    backslashes are doubled. Other texts are returned unchanged, so `C:\photos` remains as it is.
    """
    text = str(text)
    has_unsafe = not text.isprintable() and _UNSAFE.search(text) is not None
    if not has_unsafe and not ("\\" in text and _ESCAPE_SEQUENCE.search(text)):
        return text
    return _UNSAFE.sub(_escape_character, text.replace("\\", "\\\\"))


def escape_message(text: object, newline: str = r"\n") -> str:
    """Returns a message without characters that affect the terminal, apart from line breaks.

    Backslashes are not doubled, because a message may contain names that are escaped already.

    Args:
        text: the message.
        newline: replacement of a line break. A line break with an indent keeps the lines of a message, without allowing
            a name in it to forge another message.
    """
    return newline.join(
        line if line.isprintable() else _UNSAFE.sub(_escape_character, line) for line in str(text).split("\n")
    )


def _escape_character(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")

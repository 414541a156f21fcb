"""HTML elements as strings, every piece of text escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML; any other string is text that a browser has to show as it is."""

    __slots__ = ()


_VOID = frozenset(("img", "meta"))  # elements that have no content and no end


def escape(content: object) -> Markup:
    """The content as HTML; what no file can hold, such as half of a surrogate pair, becomes a question mark."""
    if isinstance(content, Markup):
        return content
    return Markup(html.escape(str(content).encode("utf-8", "replace").decode("utf-8")))


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element, such as `tag("p", "a < b", class_="note")`.

    Args:
        name: of the element.
        content: what is in it, one after the other.
        attributes: as Python can spell them: `class_` for `class`, `http_equiv` for `http-equiv`; None leaves one out.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = "".join([f"<{name}", *(f' {key}="{escape(value)}"' for key, value in pairs), ">"])
    return Markup(opening if name in _VOID else f"{opening}{join(content)}</{name}>")


def join(pieces: Iterable[object]) -> Markup:
    """Several pieces as one."""
    return Markup("".join(escape(piece) for piece in pieces))

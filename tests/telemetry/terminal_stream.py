"""A terminal for tests."""

from __future__ import annotations

import io
import re


class Terminal(io.StringIO):
    """A stream that says it is a terminal; `lines` is what a person sees on it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return [re.split(r"\r\x1b\[K", line)[-1] for line in self.getvalue().split("\n")]

"""Fake terminal for tests."""

from __future__ import annotations

import io
import re


class Terminal(io.StringIO):
    """A stream whose `isatty` is true; `lines` returns the visible text."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return [re.split(r"\r\x1b\[K", line)[-1] for line in self.getvalue().split("\n")]

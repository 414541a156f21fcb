"""A fake terminal."""

from __future__ import annotations

import io
import re


class Terminal(io.StringIO):
    """An output stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True

    def visible_lines(self) -> list[str]:
        """Returns the lines that a user sees, without overwritten text."""
        return [re.split(r"\r\x1b\[K", line)[-1] for line in self.getvalue().split("\n")]

"""`python -m caption_jax`, the same as the installed command `caption-jax`."""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older Python may run this file from a checkout
    sys.exit(f"error: caption-jax requires Python 3.11, 3.12 or 3.13, but this is Python {sys.version.split()[0]}")

if __name__ == "__main__":
    from caption_jax.cli import command

    command.run(__file__)

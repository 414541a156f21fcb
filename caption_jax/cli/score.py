"""`score`: scores a results file against references, with or without a model of this project."""

from __future__ import annotations


def run(arguments: list[str], program: str) -> int:
    """Prints the scores; returns the exit status. Requires neither JAX nor a workdir.

    Args:
        arguments: references, results and flags; see `score --help`.
        program: the command, for messages.
    """
    from caption_jax.metrics.__main__ import main  # imports NumPy, which the other subcommands import later

    return main(arguments, program, references_first=True)

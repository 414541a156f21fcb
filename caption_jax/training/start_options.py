"""Options of one process that trains a run, which are not part of the config of the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StartOptions:
    """How to start or resume a run.

    Attributes:
        checkpoint: step of the checkpoint to resume from; by default, that of the newest intact one.
        max_steps: number of steps after which this process saves and stops; 0 for no limit.
        allow_data_change: whether a run may be resumed although its data has changed.
    """

    checkpoint: int | None = None
    max_steps: int = 0
    allow_data_change: bool = False

    def as_flags(self) -> dict[str, int | bool | None]:
        """Returns the values by the names of the flags."""
        return {
            "--checkpoint": self.checkpoint,
            "--max_steps_this_run": self.max_steps,
            "--allow_data_change": self.allow_data_change,
        }

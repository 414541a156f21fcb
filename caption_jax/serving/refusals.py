"""Requests that are refused. None of these errors concerns the other requests."""

from __future__ import annotations


class RefusedError(Exception):
    """A request is refused, for a reason in one line.

    Attributes:
        retry_after: seconds after which the same request may succeed; None if it never will.
    """

    def __init__(self, reason: str, retry_after: int | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


class QueueFullError(RefusedError):
    """Too many images are waiting."""


class NotReadyError(RefusedError):
    """Programs are still being compiled, or the service is stopping."""


class DeadlineError(RefusedError):
    """A request took longer than its time limit. Its images have left the queue."""


class BatchError(RefusedError):
    """The program failed on the batch of a request, for a reason that has been logged."""


class OptionError(RefusedError):
    """An option of a request has an invalid value, or needs a program that is not compiled."""

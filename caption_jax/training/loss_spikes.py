"""Detection of training steps whose loss is far above that of the steps before."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np

WINDOW = 100  # steps
_MIN_STEPS = 20  # before these, the loss changes too fast to judge
# A spike exceeds the median by this many standard deviations, estimated from the median absolute deviation.
_DEVIATIONS = 10.0
_STANDARD_DEVIATION = 1.4826  # of a normal distribution, in median absolute deviations
_MIN_DEVIATION = 0.05  # of the median, so that a nearly constant loss has no spikes


class LossSpikes:
    """Compares each loss with the running median of the last `WINDOW` finite losses. Deterministic.

    Args:
        losses: the last losses of a run that is resumed.
    """

    def __init__(self, losses: Sequence[float] = ()):
        self._losses = collections.deque(losses, WINDOW)

    def add(self, loss: float) -> str:
        """Adds the loss of the next step. Returns a description if it is a spike, otherwise ""."""
        if not math.isfinite(loss):
            return ""
        description = self._compare(loss) if len(self._losses) >= _MIN_STEPS else ""
        self._losses.append(loss)
        return description

    def dump(self) -> list[float]:
        """Returns the last losses, to be stored in a checkpoint."""
        return list(self._losses)

    def _compare(self, loss: float) -> str:
        losses = np.asarray(self._losses)
        median = float(np.median(losses))
        deviation = _STANDARD_DEVIATION * float(np.median(np.abs(losses - median)))
        if loss <= median + _DEVIATIONS * max(deviation, _MIN_DEVIATION * abs(median)):
            return ""
        return f"the loss is {loss:.4g}, and the median of the last {len(losses)} steps {median:.4g}"

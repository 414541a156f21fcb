"""Training throughput, the fraction of time spent waiting for input, and the time to completion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Weight of the newest lap in the moving average of the seconds per step, from which the ETA is computed.
_SMOOTHING = 0.3


class Clock:
    """Measures training throughput in laps.

    A lap is the time between two calls of `tick`. Fetch the loss of a step before each call, because JAX dispatches
    steps asynchronously. Run evaluations and checkpoints inside `with clock.paused():`, which excludes them from the
    throughput, but not from the wall time and the ETA. All times are in seconds.

        clock = Clock(total_steps=1000, images_per_step=32, devices=jax.device_count())
        clock.start(0)
        for step in range(1, 1001):
            with clock.waiting():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            if step % 50 == 0:
                loss = float(metrics["loss"])  # waits for the device
                monitor.scalars(step, {"loss": loss} | clock.tick(step), "train")
    """

    def __init__(
        self, total_steps: int, images_per_step: int, devices: int = 1, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts the clock at step 0.

        Args:
            total_steps: the step at which the run ends.
            images_per_step: global batch size, over all devices and processes.
            devices: number of devices over all processes.
            now: function that returns a monotonic time in seconds.

        Raises:
            ValueError: `images_per_step` or `devices` is not positive.
        """
        if images_per_step < 1 or devices < 1:
            raise ValueError(f"images_per_step and devices must be positive, got {images_per_step} and {devices}")
        self.total_steps = total_steps
        self.images_per_step = images_per_step
        self.devices = devices
        self._now = now
        self._earlier_wall = 0.0  # wall time of earlier processes of the same run
        self._created = now()
        self.start(0)

    def start(self, step: int) -> None:
        """Starts measuring throughput at `step`. Earlier time (compiling, restoring) counts only as wall time."""
        self.step = step
        self._lap_started = self._now()
        self._lap_waited = self._lap_paused = 0.0
        self._running_total = 0.0  # time in completed laps, without pauses
        self._paused_total = 0.0
        self._laps = 0
        self._seconds_per_step: float | None = None
        self.rates: dict[str, float] = {}  # result of the last tick

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the context as waiting for input."""
        start = self._now()
        try:
            yield
        finally:
            self._lap_waited += self._now() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the context, such as an evaluation or a checkpoint, from the throughput.

        Fetch the loss first. Otherwise, the time of pending steps is also excluded.
        """
        start = self._now()
        try:
            yield
        finally:
            elapsed = self._now() - start
            self._lap_paused += elapsed
            self._paused_total += elapsed

    def tick(self, step: int) -> dict[str, float]:
        """Ends a lap at `step`, whose loss has been fetched, and starts the next one.

        Returns:
            `images_per_second`, `images_per_second_per_device`, `input_wait` (fraction of the lap's time spent waiting
            for input), `eta_seconds` and `wall_seconds`; {} if no step was completed or no time has passed since the
            last tick.
        """
        now = self._now()
        running = now - self._lap_started - self._lap_paused
        steps = step - self.step
        if steps <= 0 or running <= 0:
            return {}
        images_per_second, waited = steps * self.images_per_step / running, self._lap_waited
        self._running_total += running
        self._smooth(running / steps)
        self.step, self._lap_started, self._lap_waited, self._lap_paused = step, now, 0.0, 0.0
        self.rates = {
            "images_per_second": images_per_second,
            "images_per_second_per_device": images_per_second / self.devices,
            "input_wait": min(waited / running, 1.0),
            "eta_seconds": self.eta_seconds or 0.0,
            "wall_seconds": self._earlier_wall + now - self._created,
        }
        return dict(self.rates)

    def _smooth(self, seconds_per_step: float) -> None:
        # The first lap includes compilation, so the second one replaces it instead of being averaged with it.
        if self._laps < 2 or self._seconds_per_step is None:
            self._seconds_per_step = seconds_per_step
        else:
            self._seconds_per_step += _SMOOTHING * (seconds_per_step - self._seconds_per_step)
        self._laps += 1

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the last step, including pauses at the rate so far; None before the first tick."""
        if self._seconds_per_step is None:
            return None
        overhead = 1.0 + self._paused_total / self._running_total
        return max(self.total_steps - self.step, 0) * self._seconds_per_step * overhead

    @property
    def wall_seconds(self) -> float:
        """Wall time of the run in seconds, including earlier processes of a resumed run."""
        return self._earlier_wall + self._now() - self._created

    def dump(self) -> dict[str, float]:
        """Returns the state to store in a checkpoint, `{"wall_seconds": ...}`."""
        return {"wall_seconds": self.wall_seconds}

    def load(self, state: dict[str, float]) -> None:
        """Restores the state that `dump` returned in an earlier process of the run."""
        self._earlier_wall = float(state["wall_seconds"])


def format_duration(seconds: float) -> str:
    """Formats 75 as "1:15", 3675 as "1:01:15" and 90061 as "1d 01:01:01"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

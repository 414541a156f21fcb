"""How fast a run goes, how much of its time it waits for input, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Weight of the newest lap in the smoothed seconds per step behind the time of arrival.
_SMOOTHING = 0.3


class Clock:
    """Measures training in laps: the steps between two calls of `lap`, which are made where the loss is fetched.

    JAX returns from a step before the device has done it, so only the time between two fetched losses says how long
    steps take. Evaluations and checkpoints run inside `with clock.paused():` and count for the wall time and the time of
    arrival, not for the speed. All times are seconds.

        clock = Clock(total_steps=1000, images_per_step=32, devices=jax.device_count())
        for step in range(1000):
            with clock.waiting():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            clock.tick()
            if (step + 1) % 50 == 0:
                loss = float(metrics["loss"])  # waits for the device
                monitor.scalars(step + 1, {"loss": loss} | clock.lap())
    """

    def __init__(
        self,
        total_steps: int,
        images_per_step: int,
        devices: int = 1,
        *,
        step: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          total_steps: the step at which the run ends.
          images_per_step: images of one step over all devices and processes.
          devices: devices over all processes.
          step: steps already done when the run was taken up again.
          now: the time in seconds; monotonic.
        """
        if images_per_step < 1 or devices < 1:
            raise ValueError(f"images_per_step and devices must be positive, not {images_per_step} and {devices}")
        self.total_steps = total_steps
        self.images_per_step = images_per_step
        self.devices = devices
        self.step = step
        self._now = now
        self._started = self._lap_started = now()
        self._earlier_wall = 0.0  # of the runs before this one in the same workdir
        self._paused_total = 0.0
        self._running_total = 0.0  # of finished laps
        self._lap_waited = self._lap_paused = 0.0
        self._lap_steps = 0
        self._laps = 0
        self._seconds_per_step: float | None = None

    def tick(self, steps: int = 1) -> None:
        """Counts steps that were handed to the device."""
        self.step += steps
        self._lap_steps += steps

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for input."""
        start = self._now()
        try:
            yield
        finally:
            self._lap_waited += self._now() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not training: evaluation, checkpoints. Fetch the loss first: pending steps would count here."""
        start = self._now()
        try:
            yield
        finally:
            spent = self._now() - start
            self._lap_paused += spent
            self._paused_total += spent

    def lap(self) -> dict[str, float]:
        """Ends a lap and starts the next one; call it when the last step's loss has been fetched.

        Returns:
          `images_per_second`, `images_per_second_per_device` and `input_wait` (share of the lap's time spent waiting for
          input, 0 to 1); {} when no step was made or no time passed since the last lap.
        """
        now = self._now()
        running = now - self._lap_started - self._lap_paused
        steps, waited = self._lap_steps, self._lap_waited
        if steps == 0 or running <= 0:
            return {}
        self._running_total += running
        self._smooth(running / steps)
        self._lap_started, self._lap_steps, self._lap_waited, self._lap_paused = now, 0, 0.0, 0.0
        images = steps * self.images_per_step / running
        return {
            "images_per_second": images,
            "images_per_second_per_device": images / self.devices,
            "input_wait": min(waited / running, 1.0),
        }

    def _smooth(self, seconds_per_step: float) -> None:
        # The first lap holds the compilation: the second one replaces what it said.
        if self._laps < 2 or self._seconds_per_step is None:
            self._seconds_per_step = seconds_per_step
        else:
            self._seconds_per_step += _SMOOTHING * (seconds_per_step - self._seconds_per_step)
        self._laps += 1

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the last step, evaluations so far projected onwards; None before the first lap has ended."""
        if self._seconds_per_step is None:
            return None
        overhead = 1.0 + self._paused_total / self._running_total
        return max(self.total_steps - self.step, 0) * self._seconds_per_step * overhead

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, those before it was stopped and taken up again included."""
        return self._earlier_wall + self._now() - self._started

    def to_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: `{"step": ..., "wall_seconds": ...}`."""
        return {"step": self.step, "wall_seconds": self.wall_seconds}

    def restore(self, saved: dict[str, float]) -> None:
        """Goes on from what `to_dict` gave in an earlier process."""
        self.step = int(saved["step"])
        self._earlier_wall = float(saved["wall_seconds"])
        self._started = self._lap_started = self._now()
        self._lap_waited = self._lap_paused = 0.0
        self._lap_steps = 0


def format_duration(seconds: float) -> str:
    """Returns 75 as "1:15" and 3675 as "1:01:15"; days in front where there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

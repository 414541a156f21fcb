"""How fast a run goes, how much of its time it waits for input, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Weight of the newest lap in the smoothed seconds per step behind the time of arrival.
_SMOOTHING = 0.3


class Clock:
    """Measures training in laps: from one call of `tick` to the next, each made where a step's loss has been fetched.

    JAX returns from a step before the device has done it, so only the time between two fetched losses says how long
    steps take. Evaluations and checkpoints run inside `with clock.paused():`: they count for the wall time and the time
    of arrival, not for the speed. All times are seconds.

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
        """Makes a clock that stands at step 0.

        Args:
            total_steps: the step at which the run ends.
            images_per_step: images of one step over all devices and processes.
            devices: devices over all processes.
            now: the time in seconds; monotonic.
        """
        if images_per_step < 1 or devices < 1:
            raise ValueError(f"images_per_step and devices must be positive, not {images_per_step} and {devices}")
        self.total_steps = total_steps
        self.images_per_step = images_per_step
        self.devices = devices
        self._now = now
        self._earlier_wall = 0.0  # of the runs before this one in the same workdir
        self._born = now()
        self.start(0)

    def start(self, step: int) -> None:
        """Starts measuring speed, at `step`; what came before (compiling, restoring) is wall time only."""
        self.step = step
        self._lap_started = self._now()
        self._lap_waited = self._lap_paused = 0.0
        self._running_total = self._paused_total = 0.0  # of finished laps; of everything since the start
        self._laps = 0
        self._seconds_per_step: float | None = None
        self.rates: dict[str, float] = {}  # what the last tick returned

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
        """Time inside is not training: evaluation, checkpoints. Fetch the loss first, or pending steps count here."""
        start = self._now()
        try:
            yield
        finally:
            spent = self._now() - start
            self._lap_paused += spent
            self._paused_total += spent

    def tick(self, step: int) -> dict[str, float]:
        """Ends a lap at `step`, whose loss has been fetched, and starts the next one.

        Returns:
            `images_per_second`, `images_per_second_per_device`, `input_wait` (share of the lap's time spent waiting for
            input, 0 to 1), `eta_seconds` and `wall_seconds`; {} when no step was made or no time has passed since the
            last tick.
        """
        now = self._now()
        running = now - self._lap_started - self._lap_paused
        steps = step - self.step
        if steps <= 0 or running <= 0:
            return {}
        images, waited = steps * self.images_per_step / running, self._lap_waited
        self._running_total += running
        self._smooth(running / steps)
        self.step, self._lap_started, self._lap_waited, self._lap_paused = step, now, 0.0, 0.0
        self.rates = {
            "images_per_second": images,
            "images_per_second_per_device": images / self.devices,
            "input_wait": min(waited / running, 1.0),
            "eta_seconds": self.eta_seconds or 0.0,
            "wall_seconds": self._earlier_wall + now - self._born,
        }
        return dict(self.rates)

    def _smooth(self, seconds_per_step: float) -> None:
        # The first lap holds the compilation: the second one replaces what it said.
        if self._laps < 2 or self._seconds_per_step is None:
            self._seconds_per_step = seconds_per_step
        else:
            self._seconds_per_step += _SMOOTHING * (seconds_per_step - self._seconds_per_step)
        self._laps += 1

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the last step, evaluations so far projected onwards; None before the first tick."""
        if self._seconds_per_step is None:
            return None
        overhead = 1.0 + self._paused_total / self._running_total
        return max(self.total_steps - self.step, 0) * self._seconds_per_step * overhead

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, those before it was stopped and taken up again included."""
        return self._earlier_wall + self._now() - self._born

    def dump(self) -> dict[str, float]:
        """What a checkpoint keeps: `{"wall_seconds": ...}`."""
        return {"wall_seconds": self.wall_seconds}

    def load(self, saved: dict[str, float]) -> None:
        """Adds the wall time that `dump` gave in an earlier process."""
        self._earlier_wall = float(saved["wall_seconds"])


def format_duration(seconds: float) -> str:
    """Returns 75 as "1:15" and 3675 as "1:01:15"; days in front where there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

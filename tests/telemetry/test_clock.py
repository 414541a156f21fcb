"""Speed, waiting time and ETA, computed with a fake time source."""

from __future__ import annotations

import json

import pytest

from caption_jax.telemetry.clock import Clock, format_duration


class FakeTime:
    """A time source that is advanced explicitly."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def run_steps(clock: Clock, time: FakeTime, steps: int, *, wait: float, compute: float) -> None:
    """Simulates steps that wait for input and compute for a number of seconds each."""
    for _ in range(steps):
        with clock.waiting():
            time.advance(wait)
        time.advance(compute)


def test_speed_and_fraction_of_time_spent_waiting(time):
    clock = Clock(100, images_per_step=32, devices=4, now=time)
    time.advance(300.0)  # time before the start does not affect the speed
    clock.start(0)
    run_steps(clock, time, 10, wait=0.5, compute=1.5)
    rates = clock.tick(10)
    assert rates["images_per_second"] == pytest.approx(16.0)
    assert rates["images_per_second_per_device"] == pytest.approx(4.0)
    assert rates["input_wait"] == pytest.approx(0.25)
    assert rates["eta_seconds"] == pytest.approx(180.0)
    assert rates["wall_seconds"] == pytest.approx(320.0)


def test_rates_are_measured_since_the_previous_tick(time):
    clock = Clock(100, images_per_step=10, now=time)
    run_steps(clock, time, 2, wait=0, compute=10.0)
    clock.tick(2)
    run_steps(clock, time, 4, wait=0.5, compute=0.5)
    rates = clock.tick(6)
    assert rates["images_per_second"] == pytest.approx(10.0)
    assert rates["input_wait"] == pytest.approx(0.5)
    assert clock.tick(6) == {}


def test_a_pause_affects_the_eta_but_not_the_speed(time):
    clock = Clock(100, images_per_step=10, now=time)
    run_steps(clock, time, 10, wait=0, compute=1.0)
    clock.tick(10)
    assert clock.eta_seconds == pytest.approx(90.0)
    with clock.paused():
        time.advance(20.0)
    run_steps(clock, time, 10, wait=0, compute=1.0)
    assert clock.tick(20)["images_per_second"] == pytest.approx(10.0)
    assert clock.eta_seconds == pytest.approx(80.0 * 2.0)  # pauses took half of the time so far
    assert clock.wall_seconds == pytest.approx(40.0)


def test_slow_first_steps_do_not_bias_the_eta(time):
    clock = Clock(30, images_per_step=1, now=time)
    assert clock.eta_seconds is None
    run_steps(clock, time, 10, wait=0, compute=100.0)  # compilation
    clock.tick(10)
    run_steps(clock, time, 10, wait=0, compute=1.0)
    clock.tick(20)
    assert clock.eta_seconds == pytest.approx(10.0)
    run_steps(clock, time, 10, wait=0, compute=1.0)
    clock.tick(30)
    assert clock.eta_seconds == 0.0


def test_wall_time_continues_after_a_restart(time):
    clock = Clock(100, images_per_step=1, now=time)
    run_steps(clock, time, 10, wait=0, compute=6.0)
    saved = json.loads(json.dumps(clock.dump()))
    time.advance(5000.0)  # no process is running
    resumed = Clock(100, images_per_step=1, now=time)
    resumed.load(saved)
    time.advance(40.0)  # restoring the checkpoint
    resumed.start(10)
    assert resumed.wall_seconds == pytest.approx(100.0)
    run_steps(resumed, time, 10, wait=0, compute=1.0)
    assert resumed.tick(20)["images_per_second"] == pytest.approx(1.0)
    assert resumed.wall_seconds == pytest.approx(110.0)
    assert resumed.eta_seconds == pytest.approx(80.0)


def test_invalid_counts_are_rejected():
    with pytest.raises(ValueError, match="images_per_step"):
        Clock(10, images_per_step=0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (75, "1:15"), (3675, "1:01:15"), (59.6, "1:00"), (90061, "1d 01:01:01")]
)
def test_durations_are_formatted_as_clock_times(seconds, text):
    assert format_duration(seconds) == text

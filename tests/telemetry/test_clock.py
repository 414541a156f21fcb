"""Speeds, waiting and arrival, against a clock whose hands the test moves."""

from __future__ import annotations

import json

import pytest

from caption_jax.telemetry.clock import Clock, format_duration


class Hands:
    """A time that passes only when told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def pass_seconds(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


def run_steps(clock: Clock, hands: Hands, steps: int, *, wait: float, compute: float) -> None:
    for _ in range(steps):
        with clock.waiting():
            hands.pass_seconds(wait)
        hands.pass_seconds(compute)


def test_speed_and_share_of_waiting(hands):
    clock = Clock(100, images_per_step=32, devices=4, now=hands)
    hands.pass_seconds(300.0)  # before the start: no part of the speed
    clock.start(0)
    run_steps(clock, hands, 10, wait=0.5, compute=1.5)
    rates = clock.tick(10)
    assert rates["images_per_second"] == pytest.approx(16.0)
    assert rates["images_per_second_per_device"] == pytest.approx(4.0)
    assert rates["input_wait"] == pytest.approx(0.25)
    assert rates["eta_seconds"] == pytest.approx(180.0)
    assert rates["wall_seconds"] == pytest.approx(320.0)


def test_each_lap_counts_its_own_steps_only(hands):
    clock = Clock(100, images_per_step=10, now=hands)
    run_steps(clock, hands, 2, wait=0, compute=10.0)
    clock.tick(2)
    run_steps(clock, hands, 4, wait=0.5, compute=0.5)
    rates = clock.tick(6)
    assert rates["images_per_second"] == pytest.approx(10.0)
    assert rates["input_wait"] == pytest.approx(0.5)
    assert clock.tick(6) == {}


def test_a_pause_slows_nothing_but_delays_the_arrival(hands):
    clock = Clock(100, images_per_step=10, now=hands)
    run_steps(clock, hands, 10, wait=0, compute=1.0)
    clock.tick(10)
    assert clock.eta_seconds == pytest.approx(90.0)
    with clock.paused():
        hands.pass_seconds(20.0)
    run_steps(clock, hands, 10, wait=0, compute=1.0)
    assert clock.tick(20)["images_per_second"] == pytest.approx(10.0)
    assert clock.eta_seconds == pytest.approx(80.0 * 2.0)  # as long paused as running until now
    assert clock.wall_seconds == pytest.approx(40.0)


def test_a_slow_first_lap_does_not_stay_in_the_arrival(hands):
    clock = Clock(30, images_per_step=1, now=hands)
    assert clock.eta_seconds is None
    run_steps(clock, hands, 10, wait=0, compute=100.0)  # compilation
    clock.tick(10)
    run_steps(clock, hands, 10, wait=0, compute=1.0)
    clock.tick(20)
    assert clock.eta_seconds == pytest.approx(10.0)
    run_steps(clock, hands, 10, wait=0, compute=1.0)
    clock.tick(30)
    assert clock.eta_seconds == 0.0


def test_wall_time_survives_a_restart(hands):
    clock = Clock(100, images_per_step=1, now=hands)
    run_steps(clock, hands, 10, wait=0, compute=6.0)
    saved = json.loads(json.dumps(clock.dump()))
    hands.pass_seconds(5000.0)  # nobody runs
    resumed = Clock(100, images_per_step=1, now=hands)
    resumed.load(saved)
    hands.pass_seconds(40.0)  # restoring the checkpoint
    resumed.start(10)
    assert resumed.wall_seconds == pytest.approx(100.0)
    run_steps(resumed, hands, 10, wait=0, compute=1.0)
    assert resumed.tick(20)["images_per_second"] == pytest.approx(1.0)
    assert resumed.wall_seconds == pytest.approx(110.0)
    assert resumed.eta_seconds == pytest.approx(80.0)


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="images_per_step"):
        Clock(10, images_per_step=0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (75, "1:15"), (3675, "1:01:15"), (59.6, "1:00"), (90061, "1d 01:01:01")]
)
def test_durations_read_as_clocks_do(seconds, text):
    assert format_duration(seconds) == text

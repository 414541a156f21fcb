"""Phases count work and estimate the remaining time."""

from __future__ import annotations

import pytest

from caption_jax.telemetry.clock import Clock
from caption_jax.telemetry.progress import SILENT, Display, Phase, describe_rates


class FakeTime:
    """A time source that is advanced explicitly."""

    def __init__(self) -> None:
        self.seconds = 50.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def test_the_remaining_time_does_not_count_compilation(time):
    phase = Phase("features", 1350, "images", now=time)
    time.seconds += 30  # compilation
    assert (phase.eta_seconds, str(phase)) == (None, "features: 0/1,350 images (0:30)")
    phase.advance(50)
    assert phase.eta_seconds is None
    time.seconds += 10
    phase.advance(100)
    assert phase.eta_seconds == pytest.approx(120)
    assert str(phase) == "features: 150/1,350 images (0:40, ETA 2:00)"


def test_a_resumed_phase_estimates_the_time_from_its_own_work(time):
    phase = Phase("training", 1000, "steps", completed=900, now=time)
    for _ in range(11):
        time.seconds += 2
        phase.advance(text="loss 2.5")
    assert phase.eta_seconds == pytest.approx(2 * 89)
    assert str(phase) == "training: 911/1,000 steps loss 2.5 (0:22, ETA 2:58)"


def test_padding_of_the_last_batch_is_not_counted(time):
    phase = Phase("captioning val", 5, "images", now=time)
    phase.advance(4)
    time.seconds += 1
    phase.advance(4)
    assert (phase.completed, phase.eta_seconds) == (5, 0)


def test_a_phase_of_unknown_length_shows_the_elapsed_time(time):
    phase = Phase("compiling", now=time)
    time.seconds += 75
    assert str(phase) == "compiling: (1:15)"


class RecordingDisplay(Display):
    def __init__(self) -> None:
        self.events: list[str] = []

    def _begin(self, phase: Phase) -> None:
        self.events.append(f"begin {phase.description}")

    def _end(self, phase: Phase) -> None:
        self.events.append(f"end {phase.description}")


def test_only_the_first_call_of_a_compiled_function_is_a_phase():
    display = RecordingDisplay()
    function = display.around_first_call(lambda x, y=0: display.events.append(f"call {x + y}") or x + y, "compiling")
    assert [function(1), function(1, y=2)] == [1, 3]
    assert display.events == ["begin compiling", "call 1", "end compiling", "call 3"]


def test_a_phase_ends_with_an_error():
    display = RecordingDisplay()
    with pytest.raises(ValueError, match="broken"), display.phase("features"):
        raise ValueError("broken")
    assert display.events == ["begin features", "end features"]


def test_the_default_display_shows_nothing(capfd):
    with SILENT, SILENT.phase("features", 10, "images") as phase:
        phase.advance(10)
    assert phase.completed == 10
    assert capfd.readouterr() == ("", "")


def test_rates_of_a_training_run():
    times = iter([0.0, 0.0, 0.0, 3.0, 8.0])
    clock = Clock(3750, images_per_step=32, now=lambda: next(times))
    assert describe_rates(8.0, clock) == "loss 8.0000"
    with clock.waiting():
        pass
    clock.tick(100)
    assert describe_rates(2.34567, clock) == "loss 2.3457, 400 images/s, input wait 38%"

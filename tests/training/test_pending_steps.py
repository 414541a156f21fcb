"""Outputs of steps are read one step late and only at log points. Losses that are not finite stop the run."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from host_transfers import count_conversions

from caption_jax.runtime.stopping import NonFiniteLossError
from caption_jax.specs import TrainSpec
from caption_jax.training.pending_steps import PendingSteps
from caption_jax.training.step_faults import StepFaults
from input_pipeline.records import DataError, Record, Split

SPLIT = Split("train", [Record(lambda: b"", ("text",), image_id) for image_id in "abcdef"])


class LoggedSteps(list):
    """Steps and losses that were logged."""

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self.append((step, values["loss"], values["learning_rate"]))


def push(
    pending: PendingSteps, step: int, loss: float = 0.5, norm: float = 1.0, gradient: float = 1.0, log: bool = False
) -> None:
    """Adds a step whose batch consists of one image, the image at index `step`."""
    metrics = {"loss": loss, "gradient_norm": gradient, "parameter_norm": norm, "accuracy": 0}
    metrics = {name: jnp.float32(value) for name, value in metrics.items()}
    logged = {"learning_rate": jnp.float32(step / 8)} if log else None
    pending.push(step, metrics, jnp.array([step]), logged)


def test_a_log_point_is_logged_after_the_next_step_is_dispatched():
    logged = LoggedSteps()
    pending = PendingSteps(StepFaults(TrainSpec(), SPLIT), logged)
    push(pending, 1, loss=0.25, log=True)
    assert logged == []
    push(pending, 2, loss=0.75, log=True)
    assert logged == [(1, 0.25, 0.125)]
    pending.flush()
    pending.flush()
    assert logged == [(1, 0.25, 0.125), (2, 0.75, 0.25)]


def test_nothing_is_transferred_between_log_points():
    logged = LoggedSteps()
    pending = PendingSteps(StepFaults(TrainSpec(), SPLIT), logged)
    with count_conversions() as conversions:
        for step in range(1, 5):
            push(pending, step, log=step == 4)
        assert conversions == []
        push(pending, 5)
        assert len(conversions) == 3 * 3 + 5  # loss and norms of each step, and all values of the log point
        assert [step for step, *_ in logged] == [4]


@pytest.mark.parametrize(
    "values", [{"loss": float("nan")}, {"loss": float("-inf")}, {"norm": float("inf")}, {"gradient": float("nan")}]
)
def test_the_first_step_that_is_not_finite_is_reported_before_a_later_step_is_logged(values):
    logged = LoggedSteps()
    pending = PendingSteps(StepFaults(TrainSpec(), SPLIT), logged)
    push(pending, 1, log=True)
    push(pending, 2)
    push(pending, 3, **values)
    push(pending, 4, loss=float("nan"), log=True)
    with pytest.raises(NonFiniteLossError, match=r"^step 3: .* Images of the step: \['d'\]"):
        push(pending, 5)
    assert [step for step, *_ in logged] == [1]


def test_a_log_point_that_is_not_finite_is_logged_before_the_error():
    logged = LoggedSteps()
    pending = PendingSteps(StepFaults(TrainSpec(), SPLIT), logged)
    push(pending, 1, loss=float("inf"), log=True)
    with pytest.raises(NonFiniteLossError, match=r"step 1: loss is inf"):
        pending.flush()
    assert logged == [(1, float("inf"), 0.125)]


def test_finished_steps_are_logged_if_the_input_pipeline_fails():
    logged = LoggedSteps()
    with pytest.raises(DataError), PendingSteps(StepFaults(TrainSpec(), SPLIT), logged) as pending:
        push(pending, 1, log=True)
        raise DataError("none of the images could be read")
    assert [step for step, *_ in logged] == [1]

"""The time and cost of an epoch follow from the cost of a step and the figures of the request."""

from __future__ import annotations

import dataclasses

import pytest
from absl import flags
from ml_collections import ConfigDict

from caption_jax.cli import command_flags
from caption_jax.cli.subcommands import EPOCH_FLAGS
from caption_jax.config import default_config
from caption_jax.errors import ConfigError
from caption_jax.planning.chips import CHIPS
from caption_jax.planning.epoch import ROOFLINE_FRACTION, EpochRequest, TrainingStep, estimate_epoch, make_training_step
from caption_jax.planning.epoch_table import print_epoch
from caption_jax.specs import RunSpec

STEP = TrainingStep(16, 1600, 100, bytes_sent=2e8, compute_seconds=0.047, link_bandwidth=2e11)
REQUEST = EpochRequest(pairs=320_000)


def make_spec(**changes) -> RunSpec:
    config: ConfigDict = default_config()
    config.update_from_flattened_dict({"data.captions_per_image": 2, **changes})
    return RunSpec.from_config(config)


def estimate(step: TrainingStep = STEP, checkpoint_bytes: int = 0, **changes) -> dict:
    return estimate_epoch(step, make_spec(), checkpoint_bytes, dataclasses.replace(REQUEST, **changes))


def test_a_step_is_estimated_from_the_roofline_or_measured():
    epoch = estimate()
    assert epoch["images"] == 160_000 and epoch["steps"] == 100
    assert epoch["step_seconds"] == pytest.approx(0.047 / ROOFLINE_FRACTION)
    assert epoch["hours"] == pytest.approx(100 * 0.047 / ROOFLINE_FRACTION / 3600)
    assert estimate(step_seconds=3.6)["hours"] == pytest.approx(0.1)
    assert epoch["basis"]["chips"] == "0.47 of the roofline, as on an H200"
    assert estimate(step_seconds=3.6)["basis"]["chips"] == "--step_seconds"


def test_the_slowest_of_chips_links_and_input_determines_the_step():
    slow_links = estimate(link_bandwidth=1e8)
    assert slow_links["step_seconds"] == slow_links["link_seconds"] == pytest.approx(2.0)
    slow_input = estimate(host_cores=8, host_images_per_second=100)
    assert slow_input["step_seconds"] == slow_input["input_seconds"] == pytest.approx(2.0)
    assert slow_input["images_per_second"] == pytest.approx(800)


def test_host_cores_are_those_that_keep_the_chips_busy():
    epoch = estimate(host_images_per_second=100)
    assert epoch["host_cores"] == pytest.approx(160)
    busy = estimate(host_images_per_second=100, host_cores=round(epoch["host_cores"]))
    assert busy["step_seconds"] == pytest.approx(epoch["step_seconds"])


def test_a_checkpoint_stalls_for_its_copy_and_until_the_previous_one_is_written():
    size = 1_180_000_000
    fast = estimate(checkpoint_bytes=size, checkpoint_bandwidth=size / 9)  # one per epoch, of 10 s
    assert fast["stall_seconds"] == pytest.approx(1.0)
    slow = estimate(checkpoint_bytes=size, checkpoint_bandwidth=size / 20)
    assert slow["stall_seconds"] == pytest.approx(1.0 + 10.0)
    request = dataclasses.replace(REQUEST, checkpoint_bandwidth=size / 3)
    often = estimate_epoch(STEP, make_spec(**{"train.checkpoint_every": 20}), size, request)  # every 2 s
    assert often["checkpoints"] == 5 and often["stall_seconds"] == pytest.approx(5 * (1.0 + 1.0))


def test_the_price_is_that_of_all_chips():
    epoch = estimate(step_seconds=36.0, price_per_chip_hour=1.5)
    assert epoch["hours"] == pytest.approx(1.0) and epoch["chip_hours"] == pytest.approx(16.0)
    assert epoch["price"] == pytest.approx(24.0)
    assert estimate()["price"] is None


def test_reductions_hide_behind_enough_images():
    epoch = estimate(link_bandwidth=1e10)  # 20 ms; an image takes 1 ms
    assert epoch["hiding_images_per_chip"] == 20
    on_cpus = dataclasses.replace(STEP, link_bandwidth=0.0)
    assert estimate(on_cpus, step_seconds=1.0)["hiding_images_per_chip"] is None


def test_gathered_rows_do_not_count_as_reductions():
    """Their bytes grow with the batch, so no batch size hides them."""
    groups = [{"sent": 300.0, "bytes": 200, "gathered": 50}, {"sent": 80.0, "bytes": 80, "gathered": 80}]
    program = {"images_per_chip": 100, "collectives": groups}
    program["roofline"] = {"seconds": {"compute": 0.02, "memory": 0.03, "links": 0.5}}
    step = make_training_step(program, {"data": 8, "model": 2}, CHIPS["v5e"])
    assert step == TrainingStep(16, 800, 100, 225.0, 0.03, CHIPS["v5e"].interconnect / 2)


def test_an_epoch_that_cannot_be_estimated_is_refused():
    REQUEST.check(has_train=True, chip=CHIPS["v5e"])
    with pytest.raises(ConfigError, match="add train to --programs"):
        REQUEST.check(has_train=False, chip=CHIPS["v5e"])
    with pytest.raises(ConfigError, match="needs a measured --step_seconds"):
        REQUEST.check(has_train=True, chip=None)


def test_the_table_names_the_basis_of_each_figure(capsys):
    print_epoch(estimate(checkpoint_bytes=590_000_000, host_cores=8, price_per_chip_hour=1.5))
    output = capsys.readouterr().out
    for basis in ("0.47 of the roofline", "half of the published bandwidth", "--host_cores=8, 500 images/s each"):
        assert basis in output
    assert "320,000 pairs: 160,000 images with 2 captions" in output and "1.5 per chip and hour" in output
    assert "1 of 590 MB (one per epoch; written at 25 MB/s)" in output
    assert "0.5 s, during which training waits" in output


def test_the_flags_have_the_defaults_of_the_request():
    values = flags.FlagValues()
    command_flags.define(values)
    defaults = EpochRequest()
    assert {name: values[name].default for name in EPOCH_FLAGS} == dataclasses.asdict(defaults)

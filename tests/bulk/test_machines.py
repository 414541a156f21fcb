"""Workers get equal parts of the machines, and a lost machine is noticed."""

from __future__ import annotations

import contextlib

import pytest
from shards import make_job

from caption_jax.bulk import bulk_run
from caption_jax.bulk.bulk_run import run_job
from caption_jax.bulk.machines import LostMachineError, Machines, WorkerError, WorkerResources, choose_resources
from caption_jax.bulk.parts import Counts, Row, make_schema, write_part
from caption_jax.bulk.ray_pool import UnitResult
from caption_jax.bulk.work_units import IMAGES, Unit
from caption_jax.errors import ConfigError
from caption_jax.retrieval.index_format import ModelIdentity


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([{"CPU": 8}], 0, WorkerResources(1, 8)),
        ([{"CPU": 8}], 3, WorkerResources(3, 2)),
        ([{"CPU": 1}, {"CPU": 1}], 0, WorkerResources(2, 1)),
        ([{"CPU": 4}, {"CPU": 2}, {}], 2, WorkerResources(2, 2)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], 0, WorkerResources(4, 1, {"num_gpus": 1})),
        ([{"CPU": 8, "GPU": 2}], 1, WorkerResources(1, 1, {"num_gpus": 1})),
        ([{"CPU": 96, "TPU": 4}] * 2, 0, WorkerResources(2, 1, {"resources": {"TPU": 4}})),
    ],
)
def test_each_worker_gets_a_device_or_a_part_of_the_cores(nodes, workers, expected):
    assert choose_resources(nodes, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"CPU": 2}], "--workers=3, but there are 2 CPU cores: each worker needs one"),
        ([{"CPU": 9, "GPU": 2}], "--workers=3, but there are 2 GPUs"),
        ([{"CPU": 9, "TPU": 4}], "--workers=3, but there are 1 TPU hosts"),
    ],
)
def test_more_workers_than_the_cluster_has_room_for_are_refused(nodes, message):
    with pytest.raises(ConfigError, match=message):
        choose_resources(nodes, 3)


def make_nodes(*alive: bool, **resources: float) -> list[dict]:
    """Returns descriptions of machines as `ray.nodes()` does, some of which are lost."""
    return [
        {"NodeID": f"id{number}", "NodeManagerAddress": f"10.0.0.{number}", "Alive": is_alive, "Resources": resources}
        for number, is_alive in enumerate(alive)
    ]


@pytest.mark.parametrize("resources", [{"CPU": 2}, {"CPU": 2, "GPU": 1}, {"CPU": 2, "TPU": 4}])
def test_a_lost_machine_is_named_if_the_others_have_no_room_for_its_workers(resources):
    machines = Machines(make_nodes(False, True, True, True, **resources), 0)
    assert machines.resources.workers == 3
    machines.check(make_nodes(False, True, True, True, **resources))
    machines.check(make_nodes(False, True, True, False, True, **resources))  # another one has joined
    with pytest.raises(LostMachineError, match=r"^Ray on 10\.0\.0\.1, 10\.0\.0\.3 has ended or cannot be reached$"):
        machines.check(make_nodes(False, False, True, False, **resources))


def test_workers_of_a_lost_machine_may_have_room_on_the_others():
    machines = Machines(make_nodes(True, True, CPU=8), 2)
    machines.check(make_nodes(True, False, CPU=16))
    machines.check(make_nodes(True, True, CPU=16), is_failed=True)
    with pytest.raises(LostMachineError):  # they could not be started again there
        machines.check(make_nodes(True, False, CPU=16), is_failed=True)
    with pytest.raises(LostMachineError):  # half of the cores are not what each worker has
        machines.check(make_nodes(True, False, CPU=8))


def lose_machines(monkeypatch, *finished_before: int) -> list[tuple[list[int], int]]:
    """Replaces the actors: each start loses a machine after some units. Returns the units and workers of each start.

    Args:
        monkeypatch: pytest's fixture.
        finished_before: number of units that are finished before the loss, of each start; the last also of later ones.
    """
    pytest.importorskip("pyarrow")
    starts: list[tuple[list[int], int]] = []

    def caption_units(units, job, workers, *, verbose):
        finished = finished_before[min(len(starts), len(finished_before) - 1)]
        starts.append((list(units), workers))
        for number in list(units)[:finished]:
            write_part(job.folder, number, [Row(f"/{number}.png")], make_schema(0, 0))
            yield UnitResult(number, 1, 0, ())
        if finished < len(units):
            raise LostMachineError("Ray on 10.0.0.1 has ended")

    monkeypatch.setattr(bulk_run, "identify_model", lambda *_, **__: ModelIdentity(1, "00" * 32))
    monkeypatch.setattr(bulk_run, "require", lambda *_: None)
    monkeypatch.setattr(bulk_run, "running_ray", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(bulk_run, "caption_units", caption_units)
    return starts


@pytest.mark.parametrize(("address", "expected"), [("10.0.0.1:6379", [3, 0, 0]), ("", [3, 3, 3])])
def test_a_run_goes_on_without_a_lost_machine(tmp_path, monkeypatch, capsys, address, expected):
    monkeypatch.setenv("RAY_ADDRESS", address)
    starts = lose_machines(monkeypatch, 2)
    units = [Unit(IMAGES, (f"/{number}.png",)) for number in range(5)]
    assert run_job(make_job(tmp_path, tmp_path / "out"), units, 3) == Counts(images=5, errors=0)
    assert starts == list(zip(([0, 1, 2, 3, 4], [2, 3, 4], [4]), expected, strict=True))
    warning = "warning: Ray on 10.0.0.1 has ended: starting again with those that are left\n"
    assert capsys.readouterr().err == 2 * warning


def test_a_run_goes_on_after_losses_before_any_result(tmp_path, monkeypatch):
    starts = lose_machines(monkeypatch, 0, 0, 1, 0, 1)
    units = [Unit(IMAGES, (f"/{number}.png",)) for number in range(2)]
    assert run_job(make_job(tmp_path, tmp_path / "out"), units, 1) == Counts(images=2, errors=0)
    assert [started for started, _ in starts] == [[0, 1]] * 3 + [[1]] * 2


def test_a_run_that_only_loses_machines_ends_with_the_remedy(tmp_path, monkeypatch):
    starts = lose_machines(monkeypatch, 0)
    with pytest.raises(
        WorkerError, match=r"^Ray on 10\.0\.0\.1 has ended: run the same command again, which continues$"
    ):
        run_job(make_job(tmp_path, tmp_path / "out"), [Unit(IMAGES, ("/0.png",))], 1)
    assert len(starts) == 3

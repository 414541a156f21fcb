"""The roofline model, and the search for the largest batch size."""

from __future__ import annotations

import pytest

from caption_jax.planning.batch_search import Trial, find_largest_batch
from caption_jax.planning.chips import CHIPS, Chip
from caption_jax.planning.cost import Cost, compute_roofline
from caption_jax.planning.hlo import Collective, Traffic

CHIP = Chip("toy", memory=1000, bandwidth=100.0, peak=2000.0, interconnect=40.0, dimensions=2, source="here")


def make_cost(matrix_flops=0, bytes_accessed=0.0, collectives=(), traffic=()):
    return Cost(
        images=10,
        arguments=1,
        outputs=2,
        temporaries=3,
        code=4,
        flops=0.0,
        matrix_flops=matrix_flops,
        matrix_flops_by_dtype={},
        widened_matrix_flops=0,
        bytes=bytes_accessed,
        traffic=traffic,
        collectives=collectives,
        host_transfers={},
        seconds=0.0,
    )


def test_the_slowest_resource_is_the_bound():
    assert make_cost().memory == 10
    estimate = compute_roofline(make_cost(matrix_flops=4000, bytes_accessed=100.0), CHIP)
    assert (estimate.bound, estimate.images_per_second) == ("compute", 10 / 2)
    estimate = compute_roofline(make_cost(matrix_flops=4000, bytes_accessed=500.0), CHIP)
    assert (estimate.bound, estimate.images_per_second) == ("memory", 10 / 5)
    on_chip = (Traffic("", 450, 400),)
    estimate = compute_roofline(make_cost(matrix_flops=4000, bytes_accessed=500.0, traffic=on_chip), CHIP)
    assert estimate.bound == "compute"
    one_group = frozenset([frozenset(range(4))])
    reduction = Collective("all-reduce", bytes=400, groups=one_group, source="")
    estimate = compute_roofline(make_cost(4000, 500.0, (reduction,)), CHIP)
    assert estimate.seconds["links"] == 2 * 3 / 4 * 400 / 20  # sent by a ring of four, over half of the link bandwidth
    assert (estimate.bound, estimate.images_per_second) == ("links", 10 / 30)


def make_traffic() -> tuple[Traffic, ...]:
    """Returns the traffic of operations of three parts: 60 bytes in main memory and 30 on the chip."""
    return (
        Traffic("jit(step)/jvp(Model)/decoder/layer_0/self_attention/dot", 40, 30),
        Traffic("jit(step)/transpose(jvp(Model))/image_encoder/backbone/stem/conv", 20, 0),
        Traffic("jit(step)/transpose(jvp(Model))/image_encoder/backbone/stem/norm", 10, 0),
        Traffic("", 20, 0),
    )


def test_the_bytes_of_all_parts_sum_to_the_bytes_in_main_memory():
    cost = make_cost(bytes_accessed=95.0, traffic=make_traffic())
    assert cost.bytes_by_part == {"encoder, stem": 30, "other": 20 + 5, "self-attention": 10}  # XLA counts 5 more
    assert sum(cost.bytes_by_part.values()) == cost.memory_bytes == 65


def test_parts_are_scaled_down_if_xla_counts_fewer_bytes():
    cost = make_cost(bytes_accessed=60.0, traffic=make_traffic())
    assert cost.bytes_by_part == {"encoder, stem": 15, "other": 10, "self-attention": 5}
    assert sum(cost.bytes_by_part.values()) == cost.memory_bytes == 30
    assert make_cost().bytes_by_part == {}


def test_chips_have_published_specifications():
    assert CHIPS["v5e"].balance == pytest.approx(240.5, abs=0.1)
    assert all(chip.source.rstrip("/").endswith(name) for name, chip in CHIPS.items())


@pytest.mark.parametrize("start", [8, 64, 256, 1024])
@pytest.mark.parametrize("memory", [lambda n: 50 + 3 * n, lambda n: 50 + n * n / 40, lambda n: 50 + n + 400 * (n > 80)])
def test_batch_search_ends_at_the_largest_batch_that_fits(start, memory):
    measured_sizes = []

    def measure_memory(images):
        measured_sizes.append(images)
        return memory(images) if memory(images) < 2000 else None

    result = find_largest_batch(
        measure_memory, Trial(start, measure_memory(start)), fixed=50, unit=8, limit=1000, compilations=20
    )
    best = max(trial.images for trial in result if trial.memory and trial.memory <= 1000)
    assert memory(best) <= 1000 < memory(best + 8)
    assert [trial.images for trial in result] == measured_sizes
    assert len(set(measured_sizes)) == len(measured_sizes)


def test_the_search_respects_the_maximum_number_of_compilations():
    result = find_largest_batch(lambda n: n * n, Trial(64, None), fixed=0, unit=1, limit=1000, compilations=3)
    assert [trial.images for trial in result] == [64, 32, 16, 24]
    assert find_largest_batch(lambda n: n, Trial(8, 8), 0, 8, 7, compilations=3) == [Trial(8, 8)]

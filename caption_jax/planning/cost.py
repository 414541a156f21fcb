"""Cost of a compiled program on a chip, and its roofline."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from caption_jax.errors import UserError
from caption_jax.planning.chips import Chip
from caption_jax.planning.hlo import Collective, CompiledText, Traffic
from caption_jax.planning.host_transfers import count_host_transfers
from caption_jax.planning.matrix_products import list_products, matrix_flops, matrix_flops_by_dtype
from caption_jax.planning.model_parts import OTHER, find_part


class OutOfMemoryError(UserError, ValueError):
    """A program does not fit in the memory of a chip."""


@dataclass(frozen=True)
class Cost:
    """Cost of one execution of a program on one chip.

    Attributes:
        images: images of the batch on this chip.
        arguments: bytes of the arguments.
        outputs: bytes of the outputs, except those that alias arguments.
        temporaries: peak bytes of temporaries.
        code: bytes of the generated code.
        flops: FLOPs of all operations, including elementwise ones, as counted by XLA; `matrix_flops` for GPUs.
        matrix_flops: FLOPs of convolutions and matrix products.
        matrix_flops_by_dtype: `matrix_flops` by operand type, before compilation, because XLA widens bfloat16 on CPUs.
        widened_matrix_flops: part of `matrix_flops` whose operands were converted from a narrower floating-point type,
            before compilation.
        bytes: bytes read and written by all operations, as counted by XLA, including layout padding and on-chip memory
            traffic; the sum of `traffic` for GPUs.
        traffic: traffic per operation; the sum is close to `bytes`.
        collectives: communication with other chips.
        host_transfers: transfers to and from the host; see `count_host_transfers`.
        seconds: compile time.
    """

    images: int
    arguments: int
    outputs: int
    temporaries: int
    code: int
    flops: float
    matrix_flops: int
    matrix_flops_by_dtype: dict[str, int]
    widened_matrix_flops: int
    bytes: float
    traffic: tuple[Traffic, ...]
    collectives: tuple[Collective, ...]
    host_transfers: dict[str, int]
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes of chip memory that the program needs."""
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def memory_bytes(self) -> float:
        """Bytes read from and written to main memory (HBM), which excludes on-chip vector memory."""
        return max(self.bytes - sum(operation.on_chip for operation in self.traffic), 0.0)

    @property
    def bytes_by_part(self) -> dict[str, float]:
        """`memory_bytes` by part of the model (see `model_parts`), largest first. The parts sum to `memory_bytes`.

        If XLA counts more bytes than `traffic`, "other" contains the difference. If it counts fewer, because
        operations access only a part of an array, all parts are scaled down.
        """
        parts: Counter[str] = Counter()
        for operation in self.traffic:
            parts[find_part(operation.source)] += operation.bytes - operation.on_chip
        difference = self.memory_bytes - parts.total()
        scale = self.memory_bytes / parts.total() if difference < 0 else 1.0
        parts[OTHER] += max(difference, 0)
        return {part: count * scale for part, count in parts.most_common() if count}

    @property
    def layout_bytes(self) -> float:
        """Bytes read and written by operations that only move elements, scaled so that all traffic sums to `bytes`."""
        total = sum(operation.bytes for operation in self.traffic)
        return self.bytes * sum(one.bytes for one in self.traffic if one.is_layout_change) / max(total, 1)

    @property
    def bytes_sent(self) -> float:
        """Bytes that the chip sends to other chips."""
        return sum(collective.bytes_sent for collective in self.collectives)


@dataclass(frozen=True)
class Roofline:
    """Roofline of a program (Williams et al., 2009), with a lower bound on the execution time for each resource.

    Attributes:
        seconds: lower bounds by resource. They are "compute" (matrix FLOPs at the bfloat16 peak), "memory" (main memory
            traffic at full bandwidth) and "links" (bytes sent at half of the link bandwidth, which is published as the
            sum of both directions).
        images: images of the batch on this chip.
    """

    seconds: dict[str, float]
    images: int

    @property
    def bound(self) -> str:
        """The resource with the longest time."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def images_per_second(self) -> float:
        """Upper bound on images per second per chip, if computation, memory traffic and communication overlap."""
        return self.images / self.seconds[self.bound]


def compute_roofline(cost: Cost, chip: Chip) -> Roofline:
    """Returns the roofline of a program on a chip type."""
    seconds = {"compute": cost.matrix_flops / chip.peak, "memory": cost.memory_bytes / chip.bandwidth}
    if cost.bytes_sent:
        seconds["links"] = cost.bytes_sent / (chip.interconnect / 2)
    return Roofline(seconds, cost.images)


def measure_cost(
    lowered: jax.stages.Lowered,
    images: int,
    devices: int,
    compiler_options: Mapping[str, Any] | None = None,
    unknown_iterations: int = 1,
) -> Cost:
    """Compiles a program and returns its cost.

    Args:
        lowered: the program.
        images: images per chip in its batch.
        devices: number of devices.
        compiler_options: XLA options.
        unknown_iterations: see `compute_cost`.

    Raises:
        OutOfMemoryError: the program does not fit in the memory of a chip.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile(dict(compiler_options or {}))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(str(error).splitlines()[0]) from error
    return compute_cost(lowered, compiled, images, devices, time.perf_counter() - start, unknown_iterations)


def compute_cost(
    lowered: jax.stages.Lowered,
    compiled: jax.stages.Compiled,
    images: int,
    devices: int,
    seconds: float = 0.0,
    unknown_iterations: int = 1,
) -> Cost:
    """Returns the cost of a compiled program.

    Args:
        lowered: the program before compilation.
        compiled: the program after compilation.
        images: images per chip in its batch.
        devices: number of devices.
        seconds: compile time.
        unknown_iterations: number of iterations to assume for loops that end when a condition is met, as in decoding.
    """
    memory, text = compiled.memory_analysis(), CompiledText(compiled.as_text(), unknown_iterations)
    lowered_text, traffic = CompiledText(lowered.as_text("hlo"), unknown_iterations), tuple(text.traffic())
    # XLA does not analyse GPU programs that it compiles without a GPU.
    # XLA counts the body of a loop once.
    repeated_bytes = sum(operation.bytes - operation.bytes // operation.executions for operation in traffic)
    analysis = compiled.cost_analysis()
    if analysis is None:
        once = sum(operation.bytes for operation in traffic) - repeated_bytes
        analysis = {"flops": matrix_flops(text), "bytes accessed": once}
    return Cost(
        images=images,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=analysis.get("flops", 0.0),  # missing if the program computes nothing
        matrix_flops=matrix_flops(text),
        # Before compilation, the arrays are those of all devices together.
        matrix_flops_by_dtype={dtype: n // devices for dtype, n in matrix_flops_by_dtype(lowered_text).items()},
        widened_matrix_flops=sum(one.flops for one in list_products(lowered_text) if one.is_widened) // devices,
        bytes=analysis.get("bytes accessed", 0.0) + repeated_bytes,
        traffic=traffic,
        collectives=tuple(text.collectives(devices)),
        host_transfers=count_host_transfers(text),
        seconds=seconds,
    )

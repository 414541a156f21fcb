"""What a compiled program costs a chip, and the speed that the chip's limits leave it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax

from caption_jax.errors import UserError
from caption_jax.planning.chips import Chip
from caption_jax.planning.hlo import Collective, CompiledText, Traffic


class OutOfMemoryError(UserError, ValueError):
    """The compiler found no way to fit a program into a chip's memory."""


@dataclass(frozen=True)
class Cost:
    """Of one run of a program on one chip.

    Attributes:
        images: in the batch, those of this chip.
        arguments: bytes of what the program is given.
        outputs: bytes of what it returns, beside what takes the place of arguments.
        temporaries: bytes of all else that lives in memory while it runs, at most.
        code: bytes of the program itself.
        flops: all operations that XLA counts, elementwise ones included.
        matrix_flops: those of convolutions and matrix products.
        bytes: read and written by all operations, as XLA counts them: padding of layouts included, and what never
            leaves the chip.
        traffic: by operation, of which the sum is near `bytes`.
        collectives: communication with other chips.
        seconds: it took to compile.
    """

    images: int
    arguments: int
    outputs: int
    temporaries: int
    code: int
    flops: float
    matrix_flops: int
    bytes: float
    traffic: tuple[Traffic, ...]
    collectives: tuple[Collective, ...]
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes that the program needs of the chip's memory."""
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def memory_bytes(self) -> float:
        """Bytes read from the chip's main memory and written to it: not those in its own vector memory."""
        return max(self.bytes - sum(one.on_chip for one in self.traffic), 0.0)

    def bytes_of(self, part: str) -> float:
        """The share of `bytes` that a module of the model has, by its name in the traced program."""
        total = sum(one.bytes for one in self.traffic)
        return self.bytes * sum(one.bytes for one in self.traffic if f"/{part}/" in one.source) / max(total, 1)

    @property
    def sent(self) -> float:
        """Bytes that the chip sends to others."""
        return sum(collective.sent for collective in self.collectives)


@dataclass(frozen=True)
class Roofline:
    """The least time that each of a chip's limits leaves a program; the longest of them binds (Williams et al. 2009).

    Attributes:
        seconds: by what takes them: "compute" (matrix FLOPs at the bfloat16 peak), "memory" (bytes of main memory at
            full bandwidth) and "links" (bytes sent at half of the links' bandwidth, which is published for both
            directions together).
        images: of the batch on this chip.
    """

    seconds: dict[str, float]
    images: int

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def images_per_second(self) -> float:
        """Most images a chip can get through in a second, the three overlapped entirely."""
        return self.images / self.seconds[self.bound]


def roofline(cost: Cost, chip: Chip) -> Roofline:
    """Returns the roofline of a program on a kind of chip."""
    seconds = {"compute": cost.matrix_flops / chip.peak, "memory": cost.memory_bytes / chip.bandwidth}
    if cost.sent:
        seconds["links"] = cost.sent / (chip.links / 2)
    return Roofline(seconds, cost.images)


def measure(lowered: jax.stages.Lowered, images: int, devices: int) -> Cost:
    """Compiles a program.

    Args:
        lowered: the program.
        images: of its batch on each chip.
        devices: that it runs on.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(str(error).splitlines()[0]) from error
    seconds = time.perf_counter() - started
    memory, counted, text = compiled.memory_analysis(), compiled.cost_analysis(), CompiledText(compiled.as_text())
    return Cost(
        images=images,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=counted.get("flops", 0.0),  # absent from a program that computes nothing
        matrix_flops=text.matrix_flops(),
        bytes=counted.get("bytes accessed", 0.0),
        traffic=tuple(text.traffic()),
        collectives=tuple(text.collectives(devices)),
        seconds=seconds,
    )

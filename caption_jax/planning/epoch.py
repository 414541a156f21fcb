"""Time and cost of an epoch, from the cost of a training step and figures that a compiler cannot know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caption_jax.errors import ConfigError
from caption_jax.planning.assumed_packing import ASSUMED_CAPTIONS
from caption_jax.planning.chips import Chip
from caption_jax.specs import RunSpec

ROOFLINE_FRACTION = 0.47  # of the training step of configs/coco.py on an H200 (docs/results/h200.md)
IMAGES_PER_CORE_SECOND = 500.0  # JPEGs of 640 x 480 on an AMD EPYC (docs/performance_on_cpus.md)
CHECKPOINT_BANDWIDTH = 25e6  # bytes per second, measured on the disk of a busy machine (docs/distributed.md)
_COPY_BANDWIDTH = 1.18e9  # bytes per second from a chip to its host, of an H200 (docs/results/h200.md)


@dataclass(frozen=True)
class EpochRequest:
    """What an epoch depends on besides the training step.

    Attributes:
        pairs: number of image-caption pairs in the dataset; 0 for no estimate.
        step_seconds: measured time of a step with this batch size; 0 to estimate it from the roofline.
        host_images_per_second: images that a core reads, decodes and resizes per second.
        host_cores: cores of all hosts together; 0 for as many as the chips need.
        link_bandwidth: bytes per second that a chip can send to others; 0 for half of the published value of the chip,
            which is the sum of both directions. Between hosts, that of the slowest link.
        checkpoint_bandwidth: bytes per second at which a checkpoint is written.
        price_per_chip_hour: price of a chip per hour; 0 if there is none.
    """

    pairs: int = 0
    step_seconds: float = 0.0
    host_images_per_second: float = IMAGES_PER_CORE_SECOND
    host_cores: int = 0
    link_bandwidth: float = 0.0
    checkpoint_bandwidth: float = CHECKPOINT_BANDWIDTH
    price_per_chip_hour: float = 0.0

    def check(self, has_train: bool, chip: Chip | None) -> None:
        """Raises ConfigError if the epoch cannot be estimated for this chip, or without a training program."""
        if self.pairs and not has_train:
            raise ConfigError("--pairs needs the training step: add train to --programs")
        if self.pairs and not chip and not self.step_seconds:
            raise ConfigError("--pairs on CPUs, which have no specification, needs a measured --step_seconds")


@dataclass(frozen=True)
class TrainingStep:
    """A training step on all chips.

    Attributes:
        chips: number of chips.
        images: images of the global batch.
        images_per_chip: images of the batch on one chip.
        bytes_sent: bytes that a chip sends to reduce gradients, which do not depend on the batch size.
        compute_seconds: lower bound on the time of a step, without communication; 0 if unknown.
        link_bandwidth: bytes per second that a chip can send to others; 0 if unknown.
    """

    chips: int
    images: int
    images_per_chip: int
    bytes_sent: float
    compute_seconds: float = 0.0
    link_bandwidth: float = 0.0


def make_training_step(program: Mapping[str, Any], mesh: Mapping[str, int], chip: Chip | None) -> TrainingStep:
    """Returns the training step of a plan.

    Args:
        program: costs of the training step, as in the result of `plan`.
        mesh: number of chips per axis.
        chip: the chip; None for CPUs.
    """
    images = program["images_per_chip"]
    groups = program["collectives"]
    seconds = program["roofline"]["seconds"] if chip else {}
    return TrainingStep(
        chips=math.prod(mesh.values()),
        images=images * mesh["data"],
        images_per_chip=images,
        bytes_sent=sum(group["sent"] * (1 - group["gathered"] / max(group["bytes"], 1)) for group in groups),
        compute_seconds=max(seconds["compute"], seconds["memory"]) if chip else 0.0,
        link_bandwidth=chip.interconnect / 2 if chip else 0.0,
    )


def estimate_epoch(step: TrainingStep, spec: RunSpec, checkpoint_bytes: int, request: EpochRequest) -> dict[str, Any]:
    """Estimates an epoch; `docs/workdir.md` describes the result.

    A step takes as long as the slowest of the chips, the links and the input, which overlap. A checkpoint is copied to
    the host while training waits, and written while it continues; training waits again if the next checkpoint is due
    before it is written.

    Args:
        step: the training step.
        spec: spec of the run.
        checkpoint_bytes: size of a checkpoint.
        request: the other figures.
    """
    captions = spec.data.captions_per_image or ASSUMED_CAPTIONS
    images = math.ceil(request.pairs / captions)
    steps = max(images // step.images, 1)
    chip_seconds = request.step_seconds or step.compute_seconds / ROOFLINE_FRACTION
    bandwidth = request.link_bandwidth or step.link_bandwidth
    link_seconds = step.bytes_sent / bandwidth if bandwidth else None
    core_seconds = step.images / request.host_images_per_second
    input_seconds = core_seconds / request.host_cores if request.host_cores else 0.0
    step_seconds = max(chip_seconds, link_seconds or 0.0, input_seconds)

    every = min(spec.train.checkpoint_every or steps, steps)
    copy_seconds = checkpoint_bytes / _COPY_BANDWIDTH
    write_seconds = checkpoint_bytes / request.checkpoint_bandwidth
    wait_seconds = max(write_seconds - every * step_seconds, 0.0)
    checkpoints = steps // every
    stall_seconds = checkpoints * (copy_seconds + wait_seconds)
    hours = (steps * step_seconds + stall_seconds) / 3600
    price = hours * step.chips * request.price_per_chip_hour
    return {
        "pairs": request.pairs,
        "captions_per_image": captions,
        "images": images,
        "images_per_step": step.images,
        "steps": steps,
        "chip_seconds": chip_seconds,
        "link_seconds": link_seconds,
        "input_seconds": input_seconds,
        "step_seconds": step_seconds,
        "images_per_second": step.images / step_seconds,
        "host_cores": core_seconds / max(chip_seconds, link_seconds or 0.0),
        "checkpoints": checkpoints,
        "checkpoint_bytes": checkpoint_bytes,
        "copy_seconds": copy_seconds,
        "write_seconds": write_seconds,
        "stall_seconds": stall_seconds,
        "hours": hours,
        "chip_hours": hours * step.chips,
        "price": price if request.price_per_chip_hour else None,
        "hiding_images_per_chip": _find_hiding_batch(step, chip_seconds, link_seconds),
        "basis": _describe_basis(spec, request),
    }


def _describe_basis(spec: RunSpec, request: EpochRequest) -> dict[str, str]:
    """Returns what the figures of an epoch were computed from."""
    cores = f"--host_cores={request.host_cores}" if request.host_cores else "as many cores as needed"
    rate, bandwidth = request.host_images_per_second, request.checkpoint_bandwidth
    every = "config.train.checkpoint_every" if spec.train.checkpoint_every else "one per epoch"
    return {
        "chips": "--step_seconds" if request.step_seconds else f"{ROOFLINE_FRACTION} of the roofline, as on an H200",
        "links": "--link_bandwidth" if request.link_bandwidth else "half of the published bandwidth",
        "input": f"{cores}, {rate:g} images/s each",
        "checkpoints": f"{every}; written at {bandwidth / 1e6:g} MB/s",
        "price": f"{request.price_per_chip_hour:g} per chip and hour",
    }


def _find_hiding_batch(step: TrainingStep, chip_seconds: float, link_seconds: float | None) -> int | None:
    """Returns the images per chip from which on a chip computes for longer than its gradients travel.

    The time of a chip is taken as proportional to its images. None if the bandwidth is unknown.
    """
    if link_seconds is None:
        return None
    return math.ceil(link_seconds / (chip_seconds / step.images_per_chip))

"""`--mode=plan`: memory, FLOPs and maximum throughput of a run on a slice of chips, without access to the chips."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from caption_jax.errors import ConfigError
from caption_jax.parameters.freezing import frozen_norms, phases
from caption_jax.parameters.paths import flatten
from caption_jax.parameters.sharding import make_mesh, replicated
from caption_jax.planning.assumed import describe_run
from caption_jax.planning.assumed_packing import describe_packing
from caption_jax.planning.batch_search import Trial, find_largest_batch, fits
from caption_jax.planning.constant_shapes import describe_assumptions, get_constant_shapes
from caption_jax.planning.cost import Cost, OutOfMemoryError, compute_roofline, measure_cost
from caption_jax.planning.epoch import EpochRequest, estimate_epoch, make_training_step
from caption_jax.planning.program_summary import summarise_program
from caption_jax.planning.programs import PlannedProgram, count_generated_tokens, make_planned_programs
from caption_jax.planning.topology import Topology, parse_topology
from caption_jax.runs.step_images import check_images
from caption_jax.specs import RunSpec
from caption_jax.telemetry.progress import SILENT, Display, Phase
from caption_jax.training.program import Program, make_program
from input_pipeline.files import write_atomically

PyTree = Any
PROGRAMS = ("train", "evaluate", "decode", "encoder")


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of a plan.

    Attributes:
        topology: topology such as "v5e:16x16" or "h100:8".
        programs: subset of `PROGRAMS`.
        phase: unfreezing phase: "first", "last", or a step of the wanted phase; "all" freezes nothing.
        images: images per chip, or 0 for the batch size in the config.
        vocabulary: vocabulary size of the decoder, or 0 for the stored or assumed size.
        compilations: maximum number of compilations in the search for the largest training batch.
        epoch: what to assume for the time of an epoch.
    """

    topology: str
    programs: Sequence[str] = ("train", "decode")
    phase: str = "last"
    images: int = 0
    vocabulary: int = 0
    compilations: int = 0
    epoch: EpochRequest = dataclasses.field(default_factory=EpochRequest)


def plan(spec: RunSpec, workdir: epath.Path, request: Request, display: Display = SILENT) -> dict[str, Any]:
    """Compiles the programs of a run for a topology and reports their costs; `docs/workdir.md` describes the result.

    The result is also written to `plan_<topology>.json` in the workdir, after each program, because compilation takes
    minutes.

    Raises:
        ValueError: the topology, a program or the phase is unknown, the batch cannot be split evenly over the mesh, the
            image backbone cannot be trained with this batch size, or the constants of an objective are unknown.
        ModuleNotFoundError: the compiler for the topology is not installed.
    """
    spec.decode.check_no_ensemble("plan")
    unknown = sorted(set(request.programs) - set(PROGRAMS))
    if unknown:
        raise ConfigError(f"unknown program {', '.join(unknown)}; choose from {', '.join(PROGRAMS)}")
    topology = parse_topology(request.topology)
    request.epoch.check("train" in request.programs, topology.chip)
    with display.phase("preparing the programs"):
        program, frozen, result = _prepare(spec, workdir, request, topology)
        planned = make_planned_programs(program, frozen)
    mesh = program.mesh
    images = {
        name: request.images or _images_per_chip(program.description.spec, mesh, name) for name in request.programs
    }
    for name, per_chip in images.items():
        _check_batch_size(program, name, per_chip * mesh.shape["data"], frozen)
    searches = "train" in images and topology.chip is not None and request.compilations > 0
    total = len(images) + (request.compilations if searches else 0)  # the search may need fewer
    with display.phase("planning", total, "programs") as phase:
        compiler = _Compiler(program, topology.compiler_options, display, phase)
        for name, per_chip in images.items():
            result["programs"][name] = _measure_program(planned[name], per_chip, compiler, topology)
            _write(workdir, result)
        if request.epoch.pairs:
            result["epoch"] = _estimate_epoch(program, spec, result, topology, request.epoch)
            _write(workdir, result)
        if searches:
            train = result["programs"]["train"]
            result["largest_batch"] = _search_batch_size(planned["train"], train, compiler, topology, request)
            _write(workdir, result)
    return result


def _prepare(
    spec: RunSpec, workdir: epath.Path, request: Request, topology: Topology
) -> tuple[Program, frozenset[str], dict[str, Any]]:
    """Returns the program of the run, the paths of the frozen parameters, and a result without programs."""
    mesh = make_mesh(spec.mesh, topology.devices())
    description, assumed = describe_run(_resolve_dtype(spec, topology), workdir, request.vocabulary)
    spec = description.spec
    if packing := describe_packing(spec, mesh, request.images or spec.data.batch_size // mesh.shape["data"]):
        assumed["packing"] = packing
    if set(request.programs) & {"evaluate", "decode"}:
        assumed["generated_captions"] = f"{count_generated_tokens(spec)} tokens each, the maximum"
    program = make_program(description, mesh, spec.train.steps)
    if "train" in request.programs:
        program = dataclasses.replace(program, constants=_constant_shapes(program, workdir))
    if program.constants and "vocabulary" in assumed:
        assumed["constants"] = describe_assumptions(program.constants, program.objectives, description)
    start, frozen = _select_phase(program, request.phase)
    result: dict[str, Any] = {
        "topology": topology.name,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "chip": dataclasses.asdict(topology.chip) if topology.chip else None,
        "dtype": spec.dtype,
        "assumed": assumed,
        "phase": {"from_step": start, "starts": [first for first, _ in _run_phases(program)]},
        "parameters": _count_parameters(program, frozen),
        "programs": {},
    }
    return program, frozen, result


def _constant_shapes(program: Program, workdir: epath.Path) -> PyTree:
    """Returns the shapes of the objectives' constants, which are replicated on all devices."""
    sharding = replicated(program.mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        get_constant_shapes(program.objectives, program.description, workdir),
    )


def _check_batch_size(program: Program, name: str, images: int, frozen: frozenset[str]) -> None:
    """Raises ConfigError if the program `name` does not support a global batch of this many images."""
    if name in ("evaluate", "decode"):
        return
    spec = program.description.spec
    if name == "encoder":  # planned without gradient accumulation
        spec = dataclasses.replace(spec, optimizer=dataclasses.replace(spec.optimizer, grad_accum_steps=1))
    norms = frozen_norms(flatten(program.abstract_state.params)) - frozen_norms(frozen)
    check_images(spec, images, norms)


def _write(workdir: epath.Path, result: dict[str, Any]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    target = workdir / f"plan_{result['topology'].replace(':', '_')}.json"
    write_atomically(target, json.dumps(result, indent=2) + "\n")


def _resolve_dtype(spec: RunSpec, topology: Topology) -> RunSpec:
    """Replaces the dtype "auto" with the default of the topology."""
    return dataclasses.replace(spec, dtype=topology.dtype) if spec.dtype == "auto" else spec


def _run_phases(program: Program) -> list[tuple[int, frozenset[str]]]:
    return phases(program.abstract_state.params, program.description.spec.optimizer.rules)


def _select_phase(program: Program, name: str) -> tuple[int | None, frozenset[str]]:
    """Returns the first step of a phase (None for "all") and the paths of the parameters that it freezes."""
    run_phases = _run_phases(program)
    if name == "all":
        return None, frozenset()
    if name in ("first", "last"):
        return run_phases[0 if name == "first" else -1]
    if not name.isdigit():
        raise ConfigError(f'--phase={name!r} must be "first", "last", "all" or a step')
    return [phase for phase in run_phases if phase[0] <= int(name)][-1]


def _count_parameters(program: Program, frozen: frozenset[str]) -> dict[str, int]:
    sizes = {path: math.prod(leaf.shape) for path, leaf in flatten(program.abstract_state.params).items()}
    return {"all": sum(sizes.values()), "trained": sum(size for path, size in sizes.items() if path not in frozen)}


def _images_per_chip(spec: RunSpec, mesh: jax.sharding.Mesh, program: str) -> int:
    key = "eval_batch_size" if program in ("evaluate", "decode") else "batch_size"
    devices, batch_size = mesh.shape["data"], getattr(spec.data, key)
    if batch_size % devices:
        raise ConfigError(
            f"config.data.{key}={batch_size} images cannot be split evenly across {devices} devices; set it to a "
            "multiple, or set --images_per_chip"
        )
    return batch_size // devices


@dataclasses.dataclass(frozen=True)
class _Compiler:
    """Compiles the planned programs of `program`. `phase` counts the compilations."""

    program: Program
    compiler_options: Mapping[str, Any]
    display: Display
    phase: Phase

    def measure_cost(self, planned: PlannedProgram, images: int) -> Cost:
        """Returns the cost of a program with this many images per device. Raises OutOfMemoryError."""
        devices = self.program.mesh.size
        logging.info("compiling %s for %d devices with %d images per device", planned.name, devices, images)
        try:
            with self.display.phase(f"compiling {planned.name} with {images} images per device"):
                lowered = planned.lower(images * self.program.mesh.shape["data"])
                return measure_cost(lowered, images, devices, self.compiler_options, planned.tokens)
        finally:
            self.phase.advance()


def _measure_program(planned: PlannedProgram, images: int, compiler: _Compiler, topology: Topology) -> dict[str, Any]:
    """Compiles a program and returns its costs, or the error if it does not fit."""
    program = compiler.program
    mesh = program.mesh
    analytic = planned.count_flops() if planned.count_flops else None
    try:
        cost = compiler.measure_cost(planned, images)
    except OutOfMemoryError as error:
        return {"images_per_chip": images, "fits": False, "error": str(error)}
    result = summarise_program(cost, mesh)
    result["per_image"]["analytic_matrix_flops"] = analytic
    batch_size = images * mesh.shape["data"]
    result["gathered_may_include_weights"] = any(
        leaf.shape[:1] == (batch_size,) for leaf in jax.tree.leaves(program.abstract_state.params)
    )
    if topology.chip:
        roofline = compute_roofline(cost, topology.chip)
        result["fits"] = cost.memory <= topology.chip.memory
        result["memory"]["headroom"] = topology.chip.memory - cost.memory
        result["roofline"] = {
            "images_per_second_per_chip": roofline.images_per_second,
            "images_per_second": roofline.images_per_second * mesh.shape["data"],
            "bound": roofline.bound,
            "seconds": roofline.seconds,
        }
    return result


def _estimate_epoch(
    program: Program, spec: RunSpec, result: Mapping[str, Any], topology: Topology, request: EpochRequest
) -> dict[str, Any]:
    """Estimates an epoch from the costs of the training step.

    Args:
        program: the program of the run.
        spec: the config of the run, before values were fitted to assumed data.
        result: the plan so far.
        topology: the planned devices.
        request: what to assume.

    Raises:
        ConfigError: the step does not fit in the memory of a chip.
    """
    train = result["programs"]["train"]
    if "error" in train:
        raise ConfigError("the training step does not fit, so --pairs has no estimate: try a lower --images_per_chip")
    state = program.abstract_state
    checkpoint_bytes = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.weights(), state.resume_only()))
    )
    step = make_training_step(train, program.mesh.shape, topology.chip)
    return estimate_epoch(step, spec, checkpoint_bytes, request)


def _search_batch_size(
    planned: PlannedProgram, measured: dict[str, Any], compiler: _Compiler, topology: Topology, request: Request
) -> dict[str, Any]:
    limit = topology.chip.memory
    fixed_bytes = measured.get("memory", {}).get("arguments", 0)

    def measure_memory(images: int) -> int | None:
        try:
            return compiler.measure_cost(planned, images).memory
        except OutOfMemoryError:
            return None

    first = Trial(measured["images_per_chip"], measured.get("memory", {}).get("total"))
    spec = compiler.program.description.spec
    multiple = spec.model.encoder.batch_multiple
    unit = multiple * spec.optimizer.grad_accum_steps if multiple > 1 else math.lcm(8, spec.optimizer.grad_accum_steps)
    trials = find_largest_batch(measure_memory, first, fixed_bytes, unit, limit, request.compilations)
    fitting = [trial.images for trial in trials if fits(trial, limit)]
    return {"images_per_chip": max(fitting, default=0), "tried": [dataclasses.asdict(trial) for trial in trials]}

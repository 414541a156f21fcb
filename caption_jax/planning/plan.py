"""`--mode=plan`: memory, FLOPs and an upper bound of the speed of a run on a slice of chips, without the chips."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from caption_jax.errors import ConfigError
from caption_jax.parameters.freezing import frozen_norms, phases
from caption_jax.parameters.paths import flatten
from caption_jax.parameters.sharding import make_mesh, replicated
from caption_jax.planning.assumed import describe
from caption_jax.planning.batch_search import Tried, fits, largest_batch
from caption_jax.planning.constant_shapes import constant_shapes
from caption_jax.planning.cost import Cost, OutOfMemoryError, measure, roofline
from caption_jax.planning.figures import program_figures
from caption_jax.planning.programs import Planned, planned_programs
from caption_jax.planning.topology import Topology, parse_topology
from caption_jax.runs.step_images import check_images
from caption_jax.specs import RunSpec
from caption_jax.training.program import Program, make_program
from input_pipeline.files import write_atomically

PyTree = Any
PROGRAMS = ("train", "decode", "encoder")
_STEPS = 10_000  # assumed if the length of the run depends on its data; it only affects the learning rate schedule


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of a plan.

    Attributes:
        topology: topology such as "v5e:16x16".
        programs: subset of `PROGRAMS`.
        phase: phase of unfreezing: "first", "last", or a step within it; "all" plans with nothing frozen.
        images: images per chip; 0 for the batch size of the config.
        vocabulary: vocabulary size of the decoder; 0 for the stored or assumed size.
        compilations: maximum number of compilations in the search for the largest training batch.
    """

    topology: str
    programs: Sequence[str] = ("train", "decode")
    phase: str = "last"
    images: int = 0
    vocabulary: int = 0
    compilations: int = 0


def plan(spec: RunSpec, workdir: epath.Path, request: Request) -> dict[str, Any]:
    """Compiles the programs of a run for a topology and reports their costs; `docs/workdir.md` describes the result.

    The result is also written to `plan_<topology>.json` in the workdir, after each program, because compilation takes
    minutes.

    Raises:
        ValueError: unknown topology, program or phase; a batch that cannot be divided over the mesh or that the image
            backbone cannot be trained on; an objective whose constants are unknown.
        ModuleNotFoundError: the TPU compiler is not installed.
    """
    unknown = sorted(set(request.programs) - set(PROGRAMS))
    if unknown:
        raise ConfigError(f"unknown program {', '.join(unknown)}; expected some of {', '.join(PROGRAMS)}")
    topology = parse_topology(request.topology)
    mesh = make_mesh(spec.mesh, topology.devices())
    description, assumed = describe(_with_concrete_dtype(spec, topology), workdir, request.vocabulary)
    if spec.train.packing == "always" or (spec.train.packing == "auto" and topology.chip is None):
        assumed["packing"] = "none: includes computation on padding that the run avoids"
    program = make_program(description, mesh, spec.train.steps or _STEPS)
    if "train" in request.programs:
        program = dataclasses.replace(program, constants=_constants(program, workdir))
    if program.constants and "vocabulary" in assumed:
        assumed["constants"] = f"of {', '.join(program.constants)}: made with the assumed vocabulary"
    start, frozen = _phase(program, request.phase)
    result: dict[str, Any] = {
        "topology": topology.name,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "chip": dataclasses.asdict(topology.chip) if topology.chip else None,
        "dtype": description.spec.dtype,
        "assumed": assumed,
        "phase": {"from_step": start, "starts": [first for first, _ in _phases(program)]},
        "parameters": _parameters(program, frozen),
        "programs": {},
    }
    planned = planned_programs(program, frozen)
    images = {name: request.images or _images_per_chip(spec, mesh, name) for name in request.programs}
    for name, per_chip in images.items():
        _check_images(program, name, per_chip * mesh.shape["data"], frozen)
    for name, per_chip in images.items():
        result["programs"][name] = _measured(planned[name], per_chip, program, topology)
        _write(workdir, result)
    if "train" in result["programs"] and topology.chip and request.compilations:
        result["largest_batch"] = _search(planned["train"], result["programs"]["train"], program, topology, request)
        _write(workdir, result)
    return result


def _constants(program: Program, workdir: epath.Path) -> PyTree:
    """Shapes of the constants of the objectives, replicated on all devices."""
    sharding = replicated(program.mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        constant_shapes(program.objectives, program.description, workdir),
    )


def _check_images(program: Program, name: str, images: int, frozen: frozenset[str]) -> None:
    """Raises ConfigError if the training step, or the encoder alone, does not support the batch size."""
    if name == "decode":
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


def _with_concrete_dtype(spec: RunSpec, topology: Topology) -> RunSpec:
    """Replaces the dtype "auto" by the one that it selects on the topology."""
    return dataclasses.replace(spec, dtype=topology.dtype) if spec.dtype == "auto" else spec


def _phases(program: Program) -> list[tuple[int, frozenset[str]]]:
    return phases(program.abstract_state.params, program.description.spec.optimizer.rules)


def _phase(program: Program, name: str) -> tuple[int | None, frozenset[str]]:
    """Returns the first step of a phase (None for "all", which no run has) and the paths of its frozen parameters."""
    run_phases = _phases(program)
    if name == "all":
        return None, frozenset()
    if name in ("first", "last"):
        return run_phases[0 if name == "first" else -1]
    if not name.isdigit():
        raise ConfigError(f'--phase={name!r} must be "first", "last", "all" or a step')
    return [phase for phase in run_phases if phase[0] <= int(name)][-1]


def _parameters(program: Program, frozen: frozenset[str]) -> dict[str, int]:
    sizes = {path: math.prod(leaf.shape) for path, leaf in flatten(program.abstract_state.params).items()}
    return {"all": sum(sizes.values()), "trained": sum(size for path, size in sizes.items() if path not in frozen)}


def _images_per_chip(spec: RunSpec, mesh: jax.sharding.Mesh, program: str) -> int:
    key = "eval_batch_size" if program == "decode" else "batch_size"
    rows, batch = mesh.shape["data"], getattr(spec.data, key)
    if batch % rows:
        raise ConfigError(
            f"config.data.{key}={batch} images cannot be divided over {rows} devices; set it to a multiple, or set "
            "--images_per_chip"
        )
    return batch // rows


def _measured(planned: Planned, images: int, program: Program, topology: Topology) -> dict[str, Any]:
    """Compiles a program and returns its costs, or the error if it does not fit."""
    mesh = program.mesh
    analytic = planned.count() if planned.count else None
    try:
        cost = _cost(planned, images, program)
    except OutOfMemoryError as error:
        return {"images_per_chip": images, "fits": False, "error": str(error)}
    found = program_figures(cost, mesh, tuple(program.abstract_state.params))
    found["per_image"]["analytic_matrix_flops"] = analytic
    rows = images * mesh.shape["data"]
    found["rows_like_weights"] = any(
        leaf.shape[:1] == (rows,) for leaf in jax.tree.leaves(program.abstract_state.params)
    )
    if topology.chip:
        limits = roofline(cost, topology.chip)
        found["fits"] = cost.memory <= topology.chip.memory
        found["memory"]["headroom"] = topology.chip.memory - cost.memory
        found["roofline"] = {
            "images_per_second_per_chip": limits.images_per_second,
            "images_per_second": limits.images_per_second * mesh.shape["data"],
            "bound": limits.bound,
            "seconds": limits.seconds,
        }
    return found


def _cost(planned: Planned, images: int, program: Program) -> Cost:
    mesh = program.mesh
    logging.info("compiling %s for %d devices, %d images on each", planned.name, mesh.size, images)
    return measure(planned.lower(images * mesh.shape["data"]), images, mesh.size)


def _search(
    planned: Planned, measured: dict[str, Any], program: Program, topology: Topology, request: Request
) -> dict[str, Any]:
    limit = topology.chip.memory
    state = measured.get("memory", {}).get("arguments", 0)

    def measure_memory(images: int) -> int | None:
        try:
            return _cost(planned, images, program).memory
        except OutOfMemoryError:
            return None

    first = Tried(measured["images_per_chip"], measured.get("memory", {}).get("total"))
    spec = program.description.spec
    multiple = spec.model.encoder.batch_multiple
    unit = multiple * spec.optimizer.grad_accum_steps if multiple > 1 else math.lcm(8, spec.optimizer.grad_accum_steps)
    tried = largest_batch(measure_memory, first, state, unit, limit, request.compilations)
    fitting = [one.images for one in tried if fits(one, limit)]
    return {"images_per_chip": max(fitting, default=0), "tried": [dataclasses.asdict(one) for one in tried]}

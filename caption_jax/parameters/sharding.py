"""Devices as a mesh, and where the arrays of a run live on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from caption_jax.errors import ConfigError
from caption_jax.parameters.paths import flatten, match_paths, unflatten
from caption_jax.specs import MeshSpec

PyTree = Any

AXES = ("data", "model")


def make_mesh(spec: MeshSpec, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of a run, with axes "data" (the batch) and "model" (parameters that are sharded by rule).

    Devices are ordered by process, so the rows of a global batch lie in the order of the processes that read them.

    Args:
        spec: the devices along the axes `data` and `model`; one of them may be -1, for as many as there are.
        devices: the devices to use; all of them if not given. A single process may leave some idle, with a warning.

    Raises:
        ConfigError: the axes do not divide the devices, or a model axis would span processes.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    count, processes = len(devices), len({device.process_index for device in devices})
    data, model = _axis_sizes(spec, count)
    if processes > 1:
        if data * model != count:
            raise ConfigError(
                f"mesh.data={data} x mesh.model={model} is {data * model} devices, but {processes} processes have "
                f"{count}; set mesh.data=-1 to use them all"
            )
        if (count // processes) % model:
            raise ConfigError(
                f"mesh.model={model} does not divide the {count // processes} devices of a process; parameters can be "
                "sharded within a process only, so that each process reads its own rows"
            )
    if data * model < count:
        logging.warning(
            "the mesh uses %d of %d devices (mesh.data=%d, mesh.model=%d)", data * model, count, data, model
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(params: PyTree, rules: Sequence[tuple[str, Sequence[str | None]]], mesh: Mesh) -> PyTree:
    """Returns the sharding of each parameter, in the tree of `params`.

    Example:
        `(("decoder/embedding", ("model", None)),)` splits the rows of the embedding over the model axis.

    Args:
        params: nested dictionary of parameters or of their shapes.
        rules: `config.mesh.rules`, pairs of a regular expression for whole paths and one axis of the mesh, or None
            (or "") for not split, for each dimension. A parameter that no rule matches is replicated.
        mesh: the mesh.

    Raises:
        ConfigError: several rules match a parameter, a rule matches none, its axes do not fit the parameter's
            dimensions or are unknown, or the devices of an axis do not divide a dimension. Names the parameter.
    """
    flat = flatten(params)
    matched = match_paths(flat, [pattern for pattern, _ in rules], "mesh.rules", every=False)
    shardings = {path: replicated(mesh) for path in flat}
    for path, index in matched.items():
        pattern, axes = rules[index]
        spec = _partition(path, tuple(flat[path].shape), pattern, axes, mesh)
        shardings[path] = NamedSharding(mesh, spec)
    return unflatten(shardings)


def shardings_like(tree: PyTree, params: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    """Returns a sharding for each array of `tree`, taken from the parameter it belongs to.

    An array belongs to the parameter whose path its own path ends in, if it has that parameter's shape: so do the
    moments of an optimizer and averaged parameters. Everything else is replicated.

    Args:
        tree: any tree of arrays or shapes, such as a whole train state.
        params: parameters or shapes.
        shardings: what `parameter_shardings` gave for them.
        mesh: the mesh.
    """
    owners = {tuple(path.split("/")): value for path, value in flatten(params).items()}
    targets = {tuple(path.split("/")): value for path, value in flatten(shardings).items()}

    def sharding_of(key_path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in key_path)
        for start in range(len(names)):
            owner = owners.get(names[start:])
            if owner is not None and tuple(owner.shape) == tuple(leaf.shape):
                return targets[names[start:]]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places the rows this process has read on its devices; the result is the global batch.

    Args:
        batch: tree of numpy arrays [rows of this process, ...]. Every process passes as many rows.
        mesh: the mesh.

    Raises:
        ConfigError: the rows do not divide over this process's part of the data axis.
    """
    sharding = batch_sharding(mesh)
    local_parts = mesh.local_mesh.shape["data"]

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        if array.ndim == 0 or array.shape[0] % local_parts:
            raise ConfigError(
                f"an array of shape {array.shape} cannot be split over the {local_parts} data devices of this process; "
                f"data.batch_size (and data.eval_batch_size) have to be multiples of {mesh.shape['data']}"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, batch)


def _axis_sizes(spec: MeshSpec, count: int) -> tuple[int, int]:
    sizes = {"data": spec.data, "model": spec.model}
    open_axes = [name for name, size in sizes.items() if size == -1]
    if open_axes:
        (other,) = set(sizes) - set(open_axes)
        if count % sizes[other]:
            raise ConfigError(f"mesh.{other}={sizes[other]} does not divide the {count} devices there are")
        sizes[open_axes[0]] = count // sizes[other]
    data, model = sizes["data"], sizes["model"]
    if data * model > count:
        raise ConfigError(f"mesh.data={data} x mesh.model={model} needs {data * model} devices; there are {count}")
    return data, model


def _partition(
    path: str, shape: tuple[int, ...], pattern: str, axes: Sequence[str | None], mesh: Mesh
) -> PartitionSpec:
    where = f"config.mesh.rules: {pattern!r} splits {path!r} of shape {shape} by {tuple(axes)}"
    names = [axis or None for axis in axes]
    if isinstance(axes, str) or len(names) != len(shape):
        raise ConfigError(f"{where}; give one axis name or None for each of its {len(shape)} dimensions")
    for dimension, (size, name) in enumerate(zip(shape, names, strict=True)):
        if name is None:
            continue
        if name not in mesh.shape:
            raise ConfigError(f"{where}; the mesh has no axis {name!r}, only {', '.join(mesh.axis_names)}")
        if names.count(name) > 1:
            raise ConfigError(f"{where}; an axis of the mesh can split one dimension only")
        if size % mesh.shape[name]:
            raise ConfigError(
                f"{where}; its dimension {dimension} of {size} does not divide over the {mesh.shape[name]} devices of "
                f"mesh.{name}"
            )
    return PartitionSpec(*names)

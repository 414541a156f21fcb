"""The device mesh, and the shardings of arrays on it."""

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
    """Creates the device mesh of a run, with axes "data" (the batch) and "model" (parameters sharded by rules).

    Devices are ordered by process, so the rows of a global batch are in the order of the processes that read them.

    Args:
        spec: the number of devices along the axes `data` and `model`; one of them can be -1 to use all devices.
        devices: devices to use; all devices if None. A single process may leave some of them idle, with a warning.

    Raises:
        ConfigError: the axis sizes do not divide the number of devices, or the model axis would span processes.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    count, processes = len(devices), len({device.process_index for device in devices})
    data, model = _resolve_axis_sizes(spec, count)
    if processes > 1:
        if data * model != count:
            raise ConfigError(
                f"mesh.data={data} x mesh.model={model} uses {data * model} devices, but {processes} processes have "
                f"{count}; set mesh.data=-1 to use them all"
            )
        if (count // processes) % model:
            raise ConfigError(
                f"mesh.model={model} does not divide the {count // processes} devices of a process; parameters can be "
                "sharded only within a process, because each process reads its own rows of the batch"
            )
    if data * model < count:
        logging.warning(
            "the mesh uses %d of %d devices (mesh.data=%d, mesh.model=%d)", data * model, count, data, model
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are replicated on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(params: PyTree, rules: Sequence[tuple[str, Sequence[str | None]]], mesh: Mesh) -> PyTree:
    """Returns a tree with the structure of `params` and the sharding of each parameter as leaves.

    For example, the rules `(("decoder/embedding", ("model", None)),)` shard the first dimension of the embedding over
    the axis "model". Parameters that match no rule are replicated.

    Args:
        params: nested dictionary of parameters or their shapes.
        rules: `config.mesh.rules`, pairs of a regular expression for the whole path and a tuple with the mesh axis of
            each dimension, None (or "") for dimensions that are not sharded.
        mesh: the device mesh.

    Raises:
        ConfigError: a parameter matches several rules, a rule matches no parameter, its axes are unknown or differ in
            number from the parameter's dimensions, or an axis size does not divide a dimension. The message contains
            the path of the parameter.
    """
    flat = flatten(params)
    indices = match_paths(flat, [pattern for pattern, _ in rules], "mesh.rules", require_all=False)
    shardings = {path: replicated(mesh) for path in flat}
    for path, index in indices.items():
        pattern, axes = rules[index]
        spec = _make_partition_spec(path, tuple(flat[path].shape), pattern, axes, mesh)
        shardings[path] = NamedSharding(mesh, spec)
    return unflatten(shardings)


def shardings_like(tree: PyTree, params: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    """Returns a tree with the sharding of each array in `tree`, taken from the corresponding parameter.

    An array corresponds to a parameter if its path ends with the parameter's path and the shapes are equal, as for
    optimizer moments and averaged parameters. All other arrays are replicated.

    Args:
        tree: tree of arrays or shapes, such as a train state.
        params: parameters or their shapes.
        shardings: the shardings of `params` from `parameter_shardings`.
        mesh: the device mesh.
    """
    param_by_path = {tuple(path.split("/")): param for path, param in flatten(params).items()}
    sharding_by_path = {tuple(path.split("/")): sharding for path, sharding in flatten(shardings).items()}

    def get_sharding(key_path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in key_path)
        for start in range(len(names)):
            param = param_by_path.get(names[start:])
            if param is not None and tuple(param.shape) == tuple(leaf.shape):
                return sharding_by_path[names[start:]]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(get_sharding, tree)


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Transfers the rows read by this process to its devices, and returns the global batch.

    Args:
        batch: tree of NumPy arrays [rows of this process, ...], with the same number of rows in all processes.
        mesh: the device mesh.

    Raises:
        ConfigError: the rows cannot be split evenly over this process's devices on the data axis.
    """
    sharding = batch_sharding(mesh)
    local_shards = mesh.local_mesh.shape["data"]

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        if array.ndim == 0 or array.shape[0] % local_shards:
            raise ConfigError(
                f"cannot split an array of shape {array.shape} over the {local_shards} data devices of this process; "
                f"data.batch_size and data.eval_batch_size must be multiples of {mesh.shape['data']}"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, batch)


def _resolve_axis_sizes(spec: MeshSpec, count: int) -> tuple[int, int]:
    sizes = {"data": spec.data, "model": spec.model}
    inferred = [name for name, size in sizes.items() if size == -1]
    if inferred:
        (fixed,) = set(sizes) - set(inferred)
        if count % sizes[fixed]:
            raise ConfigError(f"mesh.{fixed}={sizes[fixed]} does not divide the {count} available devices")
        sizes[inferred[0]] = count // sizes[fixed]
    data, model = sizes["data"], sizes["model"]
    if data * model > count:
        raise ConfigError(f"mesh.data={data} x mesh.model={model} needs {data * model} devices, but there are {count}")
    return data, model


def _make_partition_spec(
    path: str, shape: tuple[int, ...], pattern: str, axes: Sequence[str | None], mesh: Mesh
) -> PartitionSpec:
    context = f"config.mesh.rules: {pattern!r} shards {path!r} of shape {shape} by {tuple(axes)}"
    names = [axis or None for axis in axes]
    if isinstance(axes, str) or len(names) != len(shape):
        raise ConfigError(f"{context}; specify an axis name or None for each of its {len(shape)} dimensions")
    for dimension, (size, name) in enumerate(zip(shape, names, strict=True)):
        if name is None:
            continue
        if name not in mesh.shape:
            raise ConfigError(f"{context}; the mesh has no axis {name!r}, only {', '.join(mesh.axis_names)}")
        if names.count(name) > 1:
            raise ConfigError(f"{context}; a mesh axis can shard only one dimension")
        if size % mesh.shape[name]:
            raise ConfigError(
                f"{context}; dimension {dimension} of size {size} cannot be split over the {mesh.shape[name]} devices "
                f"of mesh.{name}"
            )
    return PartitionSpec(*names)

"""Parses the HLO text of a compiled program: collectives, matrix FLOPs, and traffic in on-chip and main memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_ON_CHIP = "S(1)"  # marks layouts in on-chip vector memory, which the TPU compiler uses for arrays that fit
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

Groups = frozenset[frozenset[int]]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, name: str, default: str = "") -> str:
        """Value of an attribute without spaces, such as `channel_id`."""
        match = re.search(rf"\b{name}=([^\s,]+)", self.attributes)
        return match.group(1) if match else default

    @property
    def source(self) -> str:
        """Name of the operation in the traced program; "" if the compiler does not record it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


@dataclass(frozen=True)
class Collective:
    """A collective operation, executed once per run of the program.

    Attributes:
        kind: opcode such as "all-reduce".
        bytes: bytes of the full arrays on one device: the operand of a reduction, the result of a gather.
        groups: groups of communicating devices, numbered as in the mesh; None if the syntax is not recognised.
        source: operation of the traced program.
        by_rows: bytes of the results by the length of their first axis.
    """

    kind: str
    bytes: int
    groups: Groups | None
    source: str
    by_rows: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @property
    def group_size(self) -> int:
        """Number of devices per group; 0 if unknown."""
        return max(map(len, self.groups), default=0) if self.groups else 0

    @property
    def sent(self) -> float:
        """Bytes sent per device with bandwidth-optimal (ring) algorithms."""
        others = (self.group_size - 1) / self.group_size if self.group_size else 1.0
        return self.bytes * {"all-reduce": 2 * others}.get(self.kind, others)

    def axis(self, mesh_shape: Mapping[str, int]) -> str:
        """Names of the mesh axes along which devices communicate: "data", "data, model", "none" or "unknown"."""
        names = list(mesh_shape)
        for count in range(len(names) + 1):
            for chosen in itertools.combinations(names, count):
                if self.groups == _mesh_groups(mesh_shape, chosen):
                    return ", ".join(name for name in chosen if mesh_shape[name] > 1) or "none"
        return "unknown"


@dataclass(frozen=True)
class Traffic:
    """Memory traffic of one operation.

    Attributes:
        source: operation of the traced program, inherited from an operand if the operation has none of its own.
        bytes: total bytes read and written.
        on_chip: bytes in on-chip vector memory.
    """

    source: str
    bytes: int
    on_chip: int


class CompiledText:
    """Parsed computations of a compiled program.

    Args:
        text: output of `jax.stages.Compiled.as_text`.
    """

    def __init__(self, text: str):
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if heading := _COMPUTATION.match(line):
                current = self._computations.setdefault(heading.group(2), [])
                if heading.group(1):
                    self._entry = heading.group(2)
            elif match := _INSTRUCTION.match(line):
                name, kind, opcode, remainder = match.groups()
                operands, attributes = _split_operands(remainder)
                current.append(Instruction(name, kind, opcode, operands, attributes))
        self._types = {
            computation: {instruction.name: instruction.type for instruction in instructions}
            for computation, instructions in self._computations.items()
        }

    def collectives(self, devices: int) -> list[Collective]:
        """Collectives of the program on `devices` devices.

        Operations inside a loop are counted once. Instructions that the compiler split or duplicated, to overlap them
        with computation, share a channel and are counted once.
        """
        collectives, channels = [], set()
        for computation, instructions in self._computations.items():
            for instruction in instructions:
                kind = instruction.opcode.removesuffix("-start")
                channel = instruction.attribute("channel_id")
                if kind not in _COLLECTIVES or (channel and channel in channels):
                    continue
                channels.add(channel)
                operands = sum(_bytes(self._types[computation].get(name, "")) for name in instruction.operands)
                results = _bytes(instruction.type)
                if instruction.opcode.endswith("-start") and kind != "all-reduce":
                    results -= operands  # the result type of these includes the operands
                groups = _groups(instruction, devices)
                by_rows = _bytes_by_rows(instruction.type)
                collectives.append(Collective(kind, max(operands, results), groups, instruction.source, by_rows))
        return collectives

    def traffic(self) -> list[Traffic]:
        """Memory traffic of each operation, including layout padding.

        This is an upper bound for operations that access only a part of an array, such as an embedding lookup.
        Operations inside a loop are counted once.
        """
        traffic = []
        for computation in self._reached(r"body|condition|\w+_computations"):
            types, sources = self._types[computation], {}
            for instruction in self._computations[computation]:
                inherited = next((sources[name] for name in instruction.operands if sources.get(name)), "")
                source = sources[instruction.name] = instruction.source or inherited
                if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-start"):
                    continue
                if instruction.opcode in ("copy-done", "slice-done"):  # copies between main and on-chip memory
                    size = _padded_bytes(instruction.type)
                    traffic.append(Traffic(source, 2 * size, size))
                    continue
                arrays = [instruction.type, *(types.get(name, "") for name in instruction.operands)]
                total = sum(_padded_bytes(array) for array in arrays)
                traffic.append(Traffic(source, total, sum(_padded_bytes(array, _ON_CHIP) for array in arrays)))
        return traffic

    def matrix_flops(self) -> int:
        """FLOPs of all convolutions and matrix products, where a multiply-add counts as two; padding is not counted.

        Operations inside a loop are counted once.
        """
        return sum(self.matrix_flops_by_dtype().values())

    def matrix_flops_by_dtype(self) -> dict[str, int]:
        """`matrix_flops` by the wider operand type, such as "bf16" or "f32"."""
        totals: Counter[str] = Counter()
        for computation in self._reached(r"calls|to_apply|body|condition|\w+_computations"):
            for instruction in self._computations[computation]:
                if instruction.opcode not in ("convolution", "dot"):
                    continue
                types = [self._types[computation].get(name, "") for name in instruction.operands]
                if instruction.opcode == "convolution":
                    flops = _convolution_flops(instruction, *map(_shape, types))
                else:
                    flops = _dot_flops(instruction, _shape(types[0]))
                totals[max(map(_dtype, types), key=lambda dtype: _size(dtype, [1]))] += flops
        return dict(totals)

    def _reached(self, links: str) -> Iterator[str]:
        """Yields the names of the computations reachable through these attributes, each once."""
        called = re.compile(rf"\b(?:{links})=(\{{[^}}]*\}}|%?[\w.\-]+)")
        waiting, seen = [self._entry], {self._entry}
        while waiting:
            computation = waiting.pop()
            yield computation
            for instruction in self._computations[computation]:
                names = re.findall(r"[\w.\-]+", " ".join(called.findall(instruction.attributes)))
                new = [name for name in names if name in self._computations and name not in seen]
                seen.update(new)
                waiting.extend(new)


def _split_operands(text: str) -> tuple[tuple[str, ...], str]:
    """Splits the text after `opcode(` at the closing parenthesis, into operands and attributes."""
    depth = 1
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return tuple(re.findall(r"%([\w.\-]+)", text[:index]) or text[:index].split(", ")), text[index + 1 :]
    return (), text


def _shape(type_text: str) -> tuple[int, ...]:
    match = _ARRAY.search(type_text)
    return tuple(_sizes(match.group(2))) if match else ()


def _dtype(type_text: str) -> str:
    match = _ARRAY.search(type_text)
    return match.group(1) if match else ""


def _bytes(type_text: str) -> int:
    """Bytes of an array, or of the arrays in a tuple, without layout padding."""
    return sum(_size(dtype, _sizes(sizes)) for dtype, sizes, _ in _ARRAY.findall(type_text))


def _bytes_by_rows(type_text: str) -> dict[int, int]:
    totals: Counter[int] = Counter()
    for dtype, sizes, _ in _ARRAY.findall(type_text):
        totals[_sizes(sizes)[0] if sizes else 1] += _size(dtype, _sizes(sizes))
    return dict(totals)


def _padded_bytes(type_text: str, memory_space: str = "") -> int:
    """Bytes including layout padding, for arrays in one memory space or, by default, in all of them."""
    arrays = _ARRAY.findall(type_text)
    return sum(
        _size(dtype, _padded(_sizes(sizes), layout)) for dtype, sizes, layout in arrays if memory_space in layout
    )


def _size(dtype: str, sizes: list[int]) -> int:
    digits = re.search(r"\d+", dtype)
    bits = _BITS[dtype] if dtype in _BITS else int(digits.group()) if digits else 0
    return math.prod(sizes) * bits // 8


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _padded(sizes: list[int], layout: str) -> list[int]:
    """Sizes padded to multiples of the tile: "{0,1:T(8,128)}" has tiles of 128 along axis 0 and 8 along axis 1."""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    order = [int(axis) for axis in re.findall(r"\d+", layout.partition(":")[0])]
    if tile:
        for axis, length in zip(order, reversed(tile.group(1).split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(length)) * int(length)
    return sizes


def _groups(instruction: Instruction, devices: int) -> Groups | None:
    """Parses the device groups of a collective in each syntax of XLA: lists, iota tiles, and mesh axes."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        matches = re.findall(r"\{(\d+),(\d+)\}", pairs.group(1))
        return _connected_components([(int(source), int(target)) for source, target in matches])
    if re.search(r"replica_groups=\{\}", text):
        return frozenset([frozenset(range(devices))])
    if lists := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text):
        groups = re.findall(r"\{([\d,]*)\}", lists.group(1))
        return frozenset(frozenset(int(device) for device in group.split(",") if device) for group in groups)
    if tiles := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _rows(_iota(tiles.group(3), tiles.group(4)).reshape(int(tiles.group(1)), int(tiles.group(2))))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]( device_ids=[^{]*)? ?\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'", mesh.group(3))
        if not mesh.group(2) and "(" not in mesh.group(3) and set(axes) <= set(sizes):
            return _mesh_groups(sizes, axes)
    return None


def _iota(sizes: str, order: str | None) -> np.ndarray:
    shape = [int(size) for size in sizes.split(",")]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose([int(axis) for axis in order.split(",")]) if order else grid


def _rows(grid: np.ndarray) -> Groups:
    return frozenset(frozenset(row) for row in grid.tolist())


def _mesh_groups(sizes: Mapping[str, int], axes: Sequence[str]) -> Groups:
    """Groups of devices of a mesh that differ only along `axes`."""
    names = list(sizes)
    grid = np.arange(math.prod(sizes.values())).reshape([sizes[name] for name in names])
    order = [names.index(name) for name in names if name not in axes] + [names.index(name) for name in axes]
    return _rows(grid.transpose(order).reshape(-1, math.prod(sizes[name] for name in axes)))


def _connected_components(pairs: Sequence[tuple[int, int]]) -> Groups:
    """Connected components of the graph of source-target pairs."""
    groups: list[set[int]] = []
    for pair in pairs:
        merged = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in merged] + [set(pair).union(*merged)]
    return frozenset(map(frozenset, groups))


def _convolution_flops(instruction: Instruction, inputs: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Counts like XLA's cost analysis: one multiply-add for each pair of a pixel and a weight that are multiplied."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    of_input, of_kernel, of_output = labels.groups()
    output = _shape(instruction.type)
    window = _window(instruction.attributes, sum(label.isdigit() for label in of_input))
    positions = 1
    for axis, (size, stride, padding, input_dilation, kernel_dilation) in enumerate(window):
        length = inputs[of_input.index(str(axis))]
        indices = np.arange(output[of_output.index(str(axis))])[:, None] * stride - padding
        indices = indices + np.arange(size) * kernel_dilation
        valid = (indices >= 0) & (indices % input_dilation == 0) & (indices // input_dilation < length)
        positions *= int(valid.sum())
    groups = int(instruction.attribute("feature_group_count", "1"))
    batch_groups = int(instruction.attribute("batch_group_count", "1"))
    input_features = inputs[of_input.index("f")] // groups
    batch = inputs[of_input.index("b")] // batch_groups
    return 2 * positions * input_features * kernel[of_kernel.index("o")] * batch


def _window(attributes: str, dimensions: int) -> list[tuple[int, int, int, int, int]]:
    """Size, stride, low padding, input dilation and kernel dilation of each spatial dimension."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in match.group(1).split()) if match else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * dimensions

    sizes, strides, pads = values("size", "1"), values("stride", "1"), values("pad", "0_0")
    dilations = values("lhs_dilate", "1"), values("rhs_dilate", "1")
    return [
        (int(size), int(stride), int(pad.split("_")[0]), int(of_input), int(of_kernel))
        for size, stride, pad, of_input, of_kernel in zip(sizes, strides, pads, *dilations, strict=True)
    ]


def _dot_flops(instruction: Instruction, left: tuple[int, ...]) -> int:
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    contracted = math.prod(left[int(axis)] for axis in match.group(1).split(",") if axis)
    return 2 * math.prod(_shape(instruction.type)) * contracted

"""Reads the text of a compiled XLA program: collectives, what its matrix units compute, what stays on the chip."""

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
_ON_CHIP = "S(1)"  # in a layout: the chip's own vector memory, where a TPU's compiler keeps what fits
_NOTHING_MOVES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
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
        """An attribute that has no spaces in it, such as `channel_id`."""
        found = re.search(rf"\b{name}=([^\s,]+)", self.attributes)
        return found.group(1) if found else default

    @property
    def source(self) -> str:
        """The operation of the traced program that it comes from; "" where the compiler does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Collective:
    """Communication between devices, once in each run of the program.

    Attributes:
        kind: such as "all-reduce".
        bytes: of the whole arrays on one device: what a reduction takes and gives, what a gather ends up with.
        groups: devices, numbered as in the mesh, that communicate with each other; None where the text names them in a
            form that is not known here.
        source: operation of the traced program.
        by_rows: bytes of what it gives, by the length of the arrays' first axis.
    """

    kind: str
    bytes: int
    groups: Groups | None
    source: str
    by_rows: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @property
    def group_size(self) -> int:
        """Devices that communicate with each other; 0 where that is not known."""
        return max(map(len, self.groups), default=0) if self.groups else 0

    @property
    def sent(self) -> float:
        """Bytes that each device sends, by the algorithms that send least (rings, on which nothing is sent twice)."""
        others = (self.group_size - 1) / self.group_size if self.group_size else 1.0
        return self.bytes * {"all-reduce": 2 * others}.get(self.kind, others)

    def axis(self, mesh_shape: Mapping[str, int]) -> str:
        """Names the axes of a mesh whose devices communicate: "data", "data, model", or "unknown"."""
        names = list(mesh_shape)
        for count in range(len(names) + 1):
            for chosen in itertools.combinations(names, count):
                if self.groups == _mesh_groups(mesh_shape, chosen):
                    return ", ".join(name for name in chosen if mesh_shape[name] > 1) or "none"
        return "unknown"


@dataclass(frozen=True)
class Traffic:
    """What one operation reads and writes.

    Attributes:
        source: operation of the traced program, its own or the one whose result it passes on.
        bytes: in all.
        on_chip: those in the chip's vector memory.
    """

    source: str
    bytes: int
    on_chip: int


class CompiledText:
    """The computations of a compiled program, parsed.

    Args:
        text: as `jax.stages.Compiled.as_text` gives it.
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
            elif found := _INSTRUCTION.match(line):
                name, kind, opcode, rest = found.groups()
                operands, attributes = _split_operands(rest)
                current.append(Instruction(name, kind, opcode, operands, attributes))
        self._types = {
            computation: {instruction.name: instruction.type for instruction in instructions}
            for computation, instructions in self._computations.items()
        }

    def collectives(self, devices: int) -> list[Collective]:
        """All communication of the program that runs on so many devices.

        What stands inside a loop is counted once. Instructions that the compiler has split or copied to overlap them
        with computation share a channel and are counted once.
        """
        found, channels = [], set()
        for computation, instructions in self._computations.items():
            for instruction in instructions:
                kind = instruction.opcode.removesuffix("-start")
                channel = instruction.attribute("channel_id")
                if kind not in _COLLECTIVES or (channel and channel in channels):
                    continue
                channels.add(channel)
                taken = sum(_bytes(self._types[computation].get(name, "")) for name in instruction.operands)
                given = _bytes(instruction.type)
                if instruction.opcode.endswith("-start") and kind != "all-reduce":
                    given -= taken  # these give what they took as well
                groups = _groups(instruction, devices)
                by_rows = _bytes_by_rows(instruction.type)
                found.append(Collective(kind, max(taken, given), groups, instruction.source, by_rows))
        return found

    def traffic(self) -> list[Traffic]:
        """What each operation reads and writes, padding of layouts included.

        An upper bound for operations that touch a part of an array, such as a look-up in a table. What stands inside a
        loop is counted once.
        """
        found = []
        for computation in self._reached(r"body|condition|\w+_computations"):
            types, sources = self._types[computation], {}
            for instruction in self._computations[computation]:
                inherited = next((sources[name] for name in instruction.operands if sources.get(name)), "")
                source = sources[instruction.name] = instruction.source or inherited
                if instruction.opcode in _NOTHING_MOVES or instruction.opcode.endswith("-start"):
                    continue
                if instruction.opcode in ("copy-done", "slice-done"):  # from one memory into the other
                    size = _padded_bytes(instruction.type)
                    found.append(Traffic(source, 2 * size, size))
                    continue
                touched = [instruction.type, *(types.get(name, "") for name in instruction.operands)]
                everything = sum(_padded_bytes(one) for one in touched)
                found.append(Traffic(source, everything, sum(_padded_bytes(one, _ON_CHIP) for one in touched)))
        return found

    def matrix_flops(self) -> int:
        """FLOPs of all convolutions and matrix products, a multiply-add being two; positions in padding not counted.

        What stands inside a loop is counted once.
        """
        total = 0
        for computation in self._reached(r"calls|to_apply|body|condition|\w+_computations"):
            for instruction in self._computations[computation]:
                types = [self._types[computation].get(name, "") for name in instruction.operands]
                if instruction.opcode == "convolution":
                    total += _convolution_flops(instruction, *map(_shape, types))
                elif instruction.opcode == "dot":
                    total += _dot_flops(instruction, _shape(types[0]))
        return total

    def _reached(self, links: str) -> Iterator[str]:
        """Names of the computations that the program gets to through these attributes, each once."""
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


def _split_operands(rest: str) -> tuple[tuple[str, ...], str]:
    """What follows `opcode(`, up to the parenthesis that closes it and from there on."""
    depth = 1
    for place, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return tuple(re.findall(r"%([\w.\-]+)", rest[:place]) or rest[:place].split(", ")), rest[place + 1 :]
    return (), rest


def _shape(type_text: str) -> tuple[int, ...]:
    found = _ARRAY.search(type_text)
    return tuple(_sizes(found.group(2))) if found else ()


def _bytes(type_text: str) -> int:
    """Bytes of an array or of a tuple's arrays, padding of their layouts left out."""
    return sum(_size(dtype, _sizes(sizes)) for dtype, sizes, _ in _ARRAY.findall(type_text))


def _bytes_by_rows(type_text: str) -> dict[int, int]:
    found: Counter[int] = Counter()
    for dtype, sizes, _ in _ARRAY.findall(type_text):
        found[_sizes(sizes)[0] if sizes else 1] += _size(dtype, _sizes(sizes))
    return dict(found)


def _padded_bytes(type_text: str, place: str = "") -> int:
    """The same with padding, of the arrays in one place of memory or, by default, in all."""
    arrays = _ARRAY.findall(type_text)
    return sum(_size(dtype, _padded(_sizes(sizes), layout)) for dtype, sizes, layout in arrays if place in layout)


def _size(dtype: str, sizes: list[int]) -> int:
    digits = re.search(r"\d+", dtype)
    bits = _BITS[dtype] if dtype in _BITS else int(digits.group()) if digits else 0
    return math.prod(sizes) * bits // 8


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _padded(sizes: list[int], layout: str) -> list[int]:
    """Sizes filled up to whole tiles: "{0,1:T(8,128)}" is tiled along axis 0 by 128 and along axis 1 by 8."""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    order = [int(axis) for axis in re.findall(r"\d+", layout.partition(":")[0])]
    if tile:
        for axis, length in zip(order, reversed(tile.group(1).split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(length)) * int(length)
    return sizes


def _groups(instruction: Instruction, devices: int) -> Groups | None:
    """The groups of a collective, in each form that XLA writes: lists, tiles of a counted grid, axes of a mesh."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        return _linked([tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", pairs.group(1))])
    if re.search(r"replica_groups=\{\}", text):
        return frozenset([frozenset(range(devices))])
    if lists := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text):
        groups = re.findall(r"\{([\d,]*)\}", lists.group(1))
        return frozenset(frozenset(int(device) for device in group.split(",") if device) for group in groups)
    if tiles := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _rows(_counted(tiles.group(3), tiles.group(4)).reshape(int(tiles.group(1)), int(tiles.group(2))))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]( device_ids=[^{]*)? ?\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        chosen = re.findall(r"'([^']+)'", mesh.group(3))
        if not mesh.group(2) and "(" not in mesh.group(3) and set(chosen) <= set(sizes):
            return _mesh_groups(sizes, chosen)
    return None


def _counted(sizes: str, order: str | None) -> np.ndarray:
    shape = [int(size) for size in sizes.split(",")]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose([int(axis) for axis in order.split(",")]) if order else grid


def _rows(grid: np.ndarray) -> Groups:
    return frozenset(frozenset(row) for row in grid.tolist())


def _mesh_groups(sizes: Mapping[str, int], chosen: Sequence[str]) -> Groups:
    """Groups of the devices of a mesh that differ in the chosen axes only."""
    names = list(sizes)
    grid = np.arange(math.prod(sizes.values())).reshape([sizes[name] for name in names])
    order = [names.index(name) for name in names if name not in chosen] + [names.index(name) for name in chosen]
    return _rows(grid.transpose(order).reshape(-1, math.prod(sizes[name] for name in chosen)))


def _linked(pairs: Sequence[tuple[int, int]]) -> Groups:
    """Groups of devices that pairs lead through."""
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touched] + [set(pair).union(*touched)]
    return frozenset(map(frozenset, groups))


def _convolution_flops(instruction: Instruction, inputs: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """As XLA's own cost analysis counts: one multiply-add for each pixel and weight that meet."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    of_input, of_kernel, of_output = labels.groups()
    output = _shape(instruction.type)
    window = _window(instruction.attributes, sum(label.isdigit() for label in of_input))
    positions = 1
    for axis, (size, stride, before, stretch_input, stretch_kernel) in enumerate(window):
        length = inputs[of_input.index(str(axis))]
        places = np.arange(output[of_output.index(str(axis))])[:, None] * stride - before
        places = places + np.arange(size) * stretch_kernel
        met = (places >= 0) & (places % stretch_input == 0) & (places // stretch_input < length)
        positions *= int(met.sum())
    groups = int(instruction.attribute("feature_group_count", "1"))
    batch_groups = int(instruction.attribute("batch_group_count", "1"))
    inputs_each = inputs[of_input.index("f")] // groups
    batch_each = inputs[of_input.index("b")] // batch_groups
    return 2 * positions * inputs_each * kernel[of_kernel.index("o")] * batch_each


def _window(attributes: str, dimensions: int) -> list[tuple[int, int, int, int, int]]:
    """Size, stride, padding before, dilation of the input and of the kernel, for each spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in found.group(1).split()) if found else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * dimensions

    sizes, strides, pads = values("size", "1"), values("stride", "1"), values("pad", "0_0")
    stretches = values("lhs_dilate", "1"), values("rhs_dilate", "1")
    return [
        (int(size), int(stride), int(pad.split("_")[0]), int(of_input), int(of_kernel))
        for size, stride, pad, of_input, of_kernel in zip(sizes, strides, pads, *stretches, strict=True)
    ]


def _dot_flops(instruction: Instruction, left: tuple[int, ...]) -> int:
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    contracted = math.prod(left[int(axis)] for axis in found.group(1).split(",") if axis)
    return 2 * math.prod(_shape(instruction.type)) * contracted

"""Parses the HLO text of a compiled program: collectives, and traffic in on-chip and main memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caption_jax.planning.array_accesses import find_read, find_written

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_ON_CHIP = "S(1)"  # marks layouts in on-chip vector memory, which the TPU compiler uses for arrays that fit
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_WORKSPACE = re.compile(r"\b[su]8\[\d+\]")  # scratch memory of a GPU library, of which little is used
_LAYOUT_CHANGES = {"copy", "transpose"}
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
        """Returns the value of an attribute that contains no spaces, such as `channel_id`."""
        match = re.search(rf"\b{name}=([^\s,]+)", self.attributes)
        return match.group(1) if match else default

    @property
    def source(self) -> str:
        """Name of the operation in the traced program; "" if the compiler does not record it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


@dataclass(frozen=True)
class Collective:
    """A collective operation that is executed once per run of the program.

    Attributes:
        kind: opcode such as "all-reduce".
        bytes: bytes of the full arrays on one device: the operand of a reduction, the result of a gather.
        groups: groups of communicating devices, numbered as in the mesh; None if the syntax is not recognised.
        source: operation of the traced program.
        bytes_by_rows: bytes of the results by the length of their first axis.
        bytes_by_dtype: `bytes` by dtype of the arrays, such as "f32".
    """

    kind: str
    bytes: int
    groups: Groups | None
    source: str
    bytes_by_rows: Mapping[int, int] = dataclasses.field(default_factory=dict)
    bytes_by_dtype: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def group_size(self) -> int:
        """Number of devices per group; 0 if unknown."""
        return max(map(len, self.groups), default=0) if self.groups else 0

    @property
    def bytes_sent(self) -> float:
        """Bytes sent per device with bandwidth-optimal (ring) algorithms."""
        fraction = (self.group_size - 1) / self.group_size if self.group_size else 1.0
        return self.bytes * (2 * fraction if self.kind == "all-reduce" else fraction)

    def axis(self, mesh_shape: Mapping[str, int]) -> str:
        """Returns the mesh axes along which devices communicate, such as "data, model", "none" or "unknown"."""
        names = list(mesh_shape)
        for count in range(len(names) + 1):
            for axes in itertools.combinations(names, count):
                if self.groups == _mesh_groups(mesh_shape, axes):
                    return ", ".join(name for name in axes if mesh_shape[name] > 1) or "none"
        return "unknown"


@dataclass(frozen=True)
class Traffic:
    """Memory traffic of one operation.

    Attributes:
        source: operation of the traced program, or the source of an operand if the compiler does not record it.
        bytes: bytes read and written, over all executions.
        on_chip: the part of `bytes` in on-chip vector memory.
        is_layout_change: whether the operation only moves elements, such as a transposition.
        executions: number of executions; above 1 inside a loop.
    """

    source: str
    bytes: int
    on_chip: int
    is_layout_change: bool = False
    executions: int = 1


class CompiledText:
    """Parsed computations of a compiled program.

    Args:
        text: output of `jax.stages.Compiled.as_text`.
        unknown_iterations: number of iterations to assume for loops whose number of iterations is unknown.
    """

    def __init__(self, text: str, unknown_iterations: int = 1):
        self._unknown_iterations = unknown_iterations
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if heading := _COMPUTATION.match(line):
                current = self._computations.setdefault(heading.group(2), [])
                if heading.group(1):
                    self._entry = heading.group(2)
            elif match := _INSTRUCTION.match(line):
                name, type_text, opcode, remainder = match.groups()
                operands, attributes = _split_operands(remainder)
                current.append(Instruction(name, type_text, opcode, operands, attributes))
        self._types = {
            computation: {instruction.name: instruction.type for instruction in instructions}
            for computation, instructions in self._computations.items()
        }
        self._by_name = {
            computation: {instruction.name: instruction for instruction in instructions}
            for computation, instructions in self._computations.items()
        }

    def collectives(self, devices: int) -> list[Collective]:
        """Returns the collectives of the program on `devices` devices.

        Operations inside a loop are counted once. The compiler splits or duplicates some instructions to overlap them
        with computation. The resulting instructions have the same channel and are also counted once.
        """
        collectives, channels = [], set()
        for computation, instructions in self._computations.items():
            for instruction in instructions:
                kind = instruction.opcode.removesuffix("-start")
                channel = instruction.attribute("channel_id")
                if kind not in _COLLECTIVES or (channel and channel in channels):
                    continue
                channels.add(channel)
                operand_bytes = _count_bytes_by_dtype(" ".join(self.operand_types(computation, instruction)))
                result_bytes = _count_bytes_by_dtype(instruction.type)
                if instruction.opcode.endswith("-start") and kind != "all-reduce":
                    result_bytes -= operand_bytes  # the result type of these opcodes includes the operands
                larger = max(operand_bytes, result_bytes, key=Counter.total)
                collectives.append(
                    Collective(
                        kind,
                        larger.total(),
                        _parse_groups(instruction, devices),
                        instruction.source,
                        _count_bytes_by_rows(instruction.type),
                        dict(larger),
                    )
                )
        return collectives

    def traffic(self) -> list[Traffic]:
        """Returns the memory traffic of each operation, including layout padding.

        This is an upper bound for operations that access only a part of an array, such as an embedding lookup, except
        slices and updates of slices. Operations inside a loop are counted once per iteration.
        """
        traffic = []
        for computation, count in self._reachable_computations(r"body|condition|\w+_computations"):
            sources: dict[str, str] = {}
            for instruction in self._computations[computation]:
                inherited = next((sources[name] for name in instruction.operands if sources.get(name)), "")
                source = sources[instruction.name] = instruction.source or inherited
                if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-start"):
                    continue
                if instruction.opcode in ("copy-done", "slice-done"):  # copies between main and on-chip memory
                    size = _count_padded_bytes(instruction.type)
                    traffic.append(Traffic(source, 2 * size * count, size * count, executions=count))
                    continue
                total, on_chip = self._count_accessed_bytes(computation, instruction)
                is_layout_change = self._changes_layout(instruction)
                traffic.append(Traffic(source, total * count, on_chip * count, is_layout_change, count))
        return traffic

    def _count_accessed_bytes(self, computation: str, instruction: Instruction) -> tuple[int, int]:
        """Counts the bytes that an instruction reads and writes, in total and in on-chip memory."""
        context = computation, self._computations, self._types
        written = find_written(instruction, *context)
        if instruction.opcode == "custom-call":
            written = [_WORKSPACE.sub("", instruction.type)]
        accesses = [(instruction.type, written)]
        for index, array in enumerate(self.operand_types(computation, instruction)):
            accesses.append((array, find_read(instruction, index, *context)))
        total = on_chip = 0
        for array, parts in accesses:
            size = sum(map(_count_padded_bytes, parts))
            is_on_chip = _ON_CHIP in array and not array.startswith("(")  # the types of slices do not record it
            total += size
            on_chip += size if is_on_chip else sum(_count_padded_bytes(part, _ON_CHIP) for part in parts)
        return total, on_chip

    def _changes_layout(self, instruction: Instruction) -> bool:
        """Whether an instruction is a copy or a transposition, or a fusion of these."""
        if instruction.opcode != "fusion":
            return instruction.opcode in _LAYOUT_CHANGES
        opcodes = {one.opcode for one in self._computations.get(instruction.attribute("calls").lstrip("%"), ())}
        return bool(opcodes & _LAYOUT_CHANGES) and opcodes <= _LAYOUT_CHANGES | {"parameter", "bitcast", "reshape"}

    def operations(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yields all instructions that are executed, also in fusions and loops.

        Yields:
            The name of the computation, the instruction, and the number of executions as in `traffic`.
        """
        references = r"calls|to_apply|body|condition|\w+_computations"
        for computation, count in self._reachable_computations(references):
            for instruction in self._computations[computation]:
                yield computation, instruction, count

    def operand_types(self, computation: str, instruction: Instruction) -> list[str]:
        """Returns the types of the operands of an instruction; "" if unknown."""
        return [self._types[computation].get(name, "") for name in instruction.operands]

    def find(self, computation: str, name: str) -> Instruction | None:
        """Returns an instruction of a computation; None if there is none of this name."""
        return self._by_name[computation].get(name)

    def _reachable_computations(self, attributes: str) -> Iterator[tuple[str, int]]:
        """Yields the name and the number of executions of each computation reachable from the entry computation.

        Args:
            attributes: regular expression for the attributes that refer to other computations.
        """
        reference = re.compile(rf"\b(?:{attributes})=(\{{[^}}]*\}}|%?[\w.\-]+)")
        pending, visited = [(self._entry, 1)], {self._entry}
        while pending:
            computation, executions = pending.pop()
            yield computation, executions
            for instruction in self._computations[computation]:
                names = re.findall(r"[\w.\-]+", " ".join(reference.findall(instruction.attributes)))
                new = [name for name in names if name in self._computations and name not in visited]
                visited.update(new)
                iterations = self._count_iterations(instruction) if instruction.opcode == "while" else 1
                pending.extend((name, executions * iterations) for name in new)

    def _count_iterations(self, loop: Instruction) -> int:
        """Returns the number of iterations of a loop, or the assumed number if it is unknown.

        The compiler records the number. Before compilation, a loop over a known range is recognised by its condition,
        which only compares a counter, starting from 0, with a constant.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known.group(1))
        condition = self._computations.get(loop.attribute("condition").removeprefix("%"), [])
        constants = [instruction.operands[0] for instruction in condition if instruction.opcode == "constant"]
        compares = [instruction for instruction in condition if instruction.opcode == "compare"]
        is_range = len(constants) == len(compares) == 1 and compares[0].attribute("direction") == "LT"
        is_range = is_range and {item.opcode for item in condition} <= {*_NO_TRAFFIC, "compare"}
        return int(constants[0]) if is_range and constants[0].isdigit() else self._unknown_iterations


def _split_operands(text: str) -> tuple[tuple[str, ...], str]:
    """Splits the text after `opcode(` into operands and attributes, at the closing parenthesis."""
    depth = 1
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return tuple(re.findall(r"%([\w.\-]+)", text[:index]) or text[:index].split(", ")), text[index + 1 :]
    return (), text


def parse_shape(type_text: str) -> tuple[int, ...]:
    """Returns the shape of an array type, or of the first array of a tuple type; () if there is none."""
    match = _ARRAY.search(type_text)
    return tuple(_parse_sizes(match.group(2))) if match else ()


def parse_dtype(type_text: str) -> str:
    """Returns the dtype of an array type, such as "bf16", or of the first array of a tuple type; "" for no array."""
    match = _ARRAY.search(type_text)
    return match.group(1) if match else ""


def _count_bytes_by_dtype(type_text: str) -> Counter[str]:
    """Counts the bytes of an array type, or of all arrays in a tuple type, without layout padding."""
    totals: Counter[str] = Counter()
    for dtype, sizes, _ in _ARRAY.findall(type_text):
        totals[dtype] += _array_bytes(dtype, _parse_sizes(sizes))
    return totals


def _count_bytes_by_rows(type_text: str) -> dict[int, int]:
    totals: Counter[int] = Counter()
    for dtype, sizes, _ in _ARRAY.findall(type_text):
        totals[_parse_sizes(sizes)[0] if sizes else 1] += _array_bytes(dtype, _parse_sizes(sizes))
    return dict(totals)


def _count_padded_bytes(type_text: str, memory_space: str = "") -> int:
    """Like `_count_bytes`, but with layout padding. Counts only arrays in the memory space, or all if it is ""."""
    return sum(
        _array_bytes(dtype, _pad_sizes(_parse_sizes(sizes), layout))
        for dtype, sizes, layout in _ARRAY.findall(type_text)
        if memory_space in layout
    )


def count_bits(dtype: str) -> int:
    """Returns the number of bits of an element; 0 for types without elements."""
    digits = re.search(r"\d+", dtype)
    return _BITS[dtype] if dtype in _BITS else int(digits.group()) if digits else 0


def _array_bytes(dtype: str, sizes: list[int]) -> int:
    return math.prod(sizes) * count_bits(dtype) // 8


def _parse_sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _pad_sizes(sizes: list[int], layout: str) -> list[int]:
    """Pads sizes to multiples of the tile, which for "{0,1:T(8,128)}" is 128 along axis 0 and 8 along axis 1."""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    order = [int(axis) for axis in re.findall(r"\d+", layout.partition(":")[0])]
    if tile:
        for axis, length in zip(order, reversed(tile.group(1).split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(length)) * int(length)
    return sizes


def _parse_groups(instruction: Instruction, devices: int) -> Groups | None:
    """Parses the device groups of a collective, which XLA writes as pairs, lists, iota tiles or mesh axes."""
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
        shape = int(tiles.group(1)), int(tiles.group(2))
        return _rows_as_groups(_iota_grid(tiles.group(3), tiles.group(4)).reshape(shape))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]( device_ids=[^{]*)? ?\{([^}]*)\}", text):
        mesh_shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'", mesh.group(3))
        if not mesh.group(2) and "(" not in mesh.group(3) and set(axes) <= set(mesh_shape):
            return _mesh_groups(mesh_shape, axes)
    return None


def _iota_grid(sizes: str, order: str | None) -> np.ndarray:
    shape = [int(size) for size in sizes.split(",")]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose([int(axis) for axis in order.split(",")]) if order else grid


def _rows_as_groups(grid: np.ndarray) -> Groups:
    return frozenset(frozenset(row) for row in grid.tolist())


def _mesh_groups(mesh_shape: Mapping[str, int], axes: Sequence[str]) -> Groups:
    """Returns the groups of devices whose mesh coordinates differ only along `axes`."""
    names = list(mesh_shape)
    grid = np.arange(math.prod(mesh_shape.values())).reshape([mesh_shape[name] for name in names])
    order = [names.index(name) for name in names if name not in axes] + [names.index(name) for name in axes]
    return _rows_as_groups(grid.transpose(order).reshape(-1, math.prod(mesh_shape[name] for name in axes)))


def _connected_components(pairs: Sequence[tuple[int, int]]) -> Groups:
    """Returns the connected components of the graph of source-target pairs."""
    groups: list[set[int]] = []
    for pair in pairs:
        merged = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in merged] + [set(pair).union(*merged)]
    return frozenset(map(frozenset, groups))

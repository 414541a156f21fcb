"""The parts of arrays that an instruction of a compiled program reads and writes, if it does not access them whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caption_jax.planning.hlo import Instruction

Computations = Mapping[str, Sequence["Instruction"]]
Types = Mapping[str, Mapping[str, str]]  # type by name of an instruction, by computation


def find_read(instruction: Instruction, index: int, computation: str, computations: Computations, types: Types) -> list:
    """Returns the types of the parts of an operand that an instruction reads.

    A slice reads only its result, and an update in place reads nothing of the array that it updates, also within a
    fusion. Loops over the slices of an array consist of such instructions.

    Args:
        instruction: the instruction.
        index: index of the operand.
        computation: name of the computation that contains the instruction.
        computations: all computations.
        types: types of all instructions.
    """
    if instruction.opcode == "dynamic-slice" and index == 0:
        return [instruction.type]
    if instruction.opcode == "dynamic-update-slice" and index == 0:
        return []
    whole = [types[computation].get(instruction.operands[index], "")]
    called = instruction.attribute("calls").removeprefix("%")
    if instruction.opcode != "fusion" or not (inner := computations.get(called)):
        return whole
    aliases = {one.name for one in inner if one.opcode == "parameter" and one.operands == (str(index),)}
    parts = []
    for user in inner:
        for position, operand in enumerate(user.operands):
            if operand not in aliases:
                continue
            if user.opcode == "bitcast" or "output_to_operand_aliasing" in user.attributes:
                aliases.add(user.name)
            else:
                parts += find_read(user, position, called, computations, types)
    return whole if types[called].keys() & aliases and _reads_whole(parts, inner, aliases) else parts


def _reads_whole(parts: Sequence[str], inner: Sequence[Instruction], aliases: set[str]) -> bool:
    """Whether one of the parts is the whole array, which other parts then belong to."""
    wholes = {one.type for one in inner if one.name in aliases}
    return any(part in wholes for part in parts)


def find_written(instruction: Instruction, computation: str, computations: Computations, types: Types) -> list[str]:
    """Returns the types of the parts of the result that an instruction writes; see `find_read`."""
    if instruction.opcode == "dynamic-update-slice":
        return [types[computation].get(instruction.operands[1], "")]
    called = instruction.attribute("calls").removeprefix("%")
    if instruction.opcode != "fusion" or not (inner := computations.get(called)):
        return [instruction.type]
    by_name, root = {one.name: one for one in inner}, inner[-1]
    results = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if not any(one.opcode in ("dynamic-update-slice", "fusion") for one in results):
        return [instruction.type]
    return [part for one in results for part in find_written(one, called, computations, types)]

"""Transfers between the chip and the host inside a compiled program, during which the chip may wait."""

from __future__ import annotations

import re
from collections import Counter

from caption_jax.planning.hlo import CompiledText, Instruction

_HOST_MEMORY = "S(5)"  # marks layouts in the memory of the host
_HOST_OPCODES = ("infeed", "outfeed")
_CHANNELS = ("send", "recv")  # between chips, unless they are marked
# Python callbacks, and arrays that are moved to the host or back.
_HOST_TARGETS = re.compile(r'custom_call_target="[^"]*(callback|MoveToHost|MoveToDevice|Host(Send|Recv))[^"]*"')


def count_host_transfers(text: CompiledText) -> dict[str, int]:
    """Counts transfers between the chip and the host, once per iteration of a loop.

    Args:
        text: a compiled program.

    Returns:
        The number of transfers by operation of the traced program, or by opcode if the compiler does not record it.
        Arguments and results of the program do not count, nor does a computation on the host of a CPU program.
    """
    transfers: Counter[str] = Counter()
    for _, instruction, executions in text.operations():
        if _is_host_transfer(instruction):
            transfers[instruction.source or instruction.opcode] += executions
    return dict(transfers.most_common())


def _is_host_transfer(instruction: Instruction) -> bool:
    opcode = instruction.opcode
    if opcode in _CHANNELS:
        return "is_host_transfer=true" in instruction.attributes
    if opcode.startswith("copy"):
        return _HOST_MEMORY in instruction.type and not opcode.endswith("-done")
    if opcode == "custom-call":
        return bool(_HOST_TARGETS.search(instruction.attributes))
    return opcode in _HOST_OPCODES

"""Matrix products and convolutions of a program, from its HLO text, and their FLOPs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from caption_jax.planning.hlo import CompiledText, Instruction, count_bits, parse_dtype, parse_shape

_MOVES = {"transpose", "reshape", "broadcast", "bitcast", "copy", "slice"}
_LIBRARY_PRODUCT = re.compile(r"__cublas\$|__cudnn\$conv")  # targets of the custom calls that replace products on GPUs

Shape = tuple[int, ...]


@dataclass(frozen=True)
class MatrixProduct:
    """A matrix product or convolution.

    Attributes:
        flops: FLOPs of all executions, where a multiply-add counts as two; padding is not counted.
        dtype: dtype of the operands, such as "bf16"; the wider one if they differ.
        is_widened: whether an operand was converted from a narrower floating-point type.
        source: operation of the traced program.
    """

    flops: int
    dtype: str
    is_widened: bool
    source: str


def list_products(text: CompiledText) -> list[MatrixProduct]:
    """Returns all matrix products and convolutions of a program. Those inside a loop are listed once."""
    return list(_iterate_products(text))


def matrix_flops(text: CompiledText) -> int:
    """Returns the FLOPs of all products of a program."""
    return sum(product.flops for product in list_products(text))


def matrix_flops_by_dtype(text: CompiledText) -> dict[str, int]:
    """Returns `matrix_flops` by operand type, such as "bf16" or "f32"."""
    totals: Counter[str] = Counter()
    for product in list_products(text):
        totals[product.dtype] += product.flops
    return dict(totals)


def _iterate_products(text: CompiledText) -> Iterator[MatrixProduct]:
    for computation, instruction, executions in text.operations():
        is_library_call = instruction.opcode == "custom-call" and _LIBRARY_PRODUCT.search(instruction.attributes)
        if not is_library_call and instruction.opcode not in ("convolution", "dot"):
            continue
        types = text.operand_types(computation, instruction)[:2]
        yield MatrixProduct(
            flops=executions * _count_flops(instruction, [parse_shape(operand) for operand in types]),
            dtype=max(map(parse_dtype, types), key=count_bits),
            is_widened=any(_is_widened(text, computation, name) for name in instruction.operands[:2]),
            source=instruction.source,
        )


def _is_widened(text: CompiledText, computation: str, name: str) -> bool:
    """Whether an operand is the conversion of a narrower floating-point array, possibly moved afterwards."""
    while (instruction := text.find(computation, name)) and instruction.opcode in _MOVES:
        name = instruction.operands[0]
    if instruction is None or instruction.opcode != "convert":
        return False
    narrow, wide = parse_dtype(text.operand_types(computation, instruction)[0]), parse_dtype(instruction.type)
    return "f" in narrow and count_bits(narrow) < count_bits(wide)


def _count_flops(instruction: Instruction, operands: Sequence[Shape]) -> int:
    result = parse_shape(instruction.type)
    if "dim_labels=" not in instruction.attributes:
        return _count_dot_flops(instruction, operands[0], result)
    if "convBackwardInput" in instruction.attributes:  # the attributes are those of the forward convolution
        return _count_convolution_flops(instruction, result, operands[1], operands[0])
    if "convBackwardFilter" in instruction.attributes:
        return _count_convolution_flops(instruction, operands[0], result, operands[1])
    return _count_convolution_flops(instruction, operands[0], operands[1], result)


def _count_convolution_flops(instruction: Instruction, input_shape: Shape, kernel_shape: Shape, output: Shape) -> int:
    """Counts one multiply-add per product of a pixel and a weight, like XLA's cost analysis, so padding is excluded."""
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    input_labels, kernel_labels, output_labels = match.groups()
    window = _parse_window(instruction.attributes, sum(label.isdigit() for label in input_labels))
    positions = 1
    for axis, (size, stride, padding, input_dilation, kernel_dilation) in enumerate(window):
        length = input_shape[input_labels.index(str(axis))]
        indices = np.arange(output[output_labels.index(str(axis))])[:, None] * stride - padding
        indices = indices + np.arange(size) * kernel_dilation
        valid = (indices >= 0) & (indices % input_dilation == 0) & (indices // input_dilation < length)
        positions *= int(valid.sum())
    groups = int(instruction.attribute("feature_group_count", "1"))
    batch_groups = int(instruction.attribute("batch_group_count", "1"))
    input_features = input_shape[input_labels.index("f")] // groups
    batch_size = input_shape[input_labels.index("b")] // batch_groups
    return 2 * positions * input_features * kernel_shape[kernel_labels.index("o")] * batch_size


def _parse_window(attributes: str, dimensions: int) -> list[tuple[int, int, int, int, int]]:
    """Returns the size, stride, low padding, input dilation and kernel dilation of each spatial dimension."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in match.group(1).split()) if match else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * dimensions

    sizes, strides, pads = values("size", "1"), values("stride", "1"), values("pad", "0_0")
    dilations = values("lhs_dilate", "1"), values("rhs_dilate", "1")
    return [
        (int(size), int(stride), int(pad.split("_")[0]), int(input_dilation), int(kernel_dilation))
        for size, stride, pad, input_dilation, kernel_dilation in zip(sizes, strides, pads, *dilations, strict=True)
    ]


def _count_dot_flops(instruction: Instruction, left: Shape, result: Shape) -> int:
    """Counts the FLOPs of a dot, or of a cuBLAS call, whose configuration is in JSON."""
    match = re.search(
        r'lhs_contracting_dim(?:s=\{([\d,]*)\}|ensions":\[([\d,"]*)\])', instruction.attributes.replace("\\", "")
    )
    axes = re.findall(r"\d+", match[1] or match[2] or "")
    return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in axes)

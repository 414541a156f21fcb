"""Collectives, FLOPs and memory traffic are parsed from the text of a compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from caption_jax.planning.cost import compute_cost
from caption_jax.planning.hlo import CompiledText, Traffic
from caption_jax.planning.matrix_products import matrix_flops, matrix_flops_by_dtype

MESH = {"data": 4, "model": 2}
HEADER = "HloModule step\n\n"
ENTRY = """ENTRY %main (a: f32[16,8]) -> f32[16,8] {{
  %a = f32[16,8]{{1,0}} parameter(0)
  {line}
}}
"""


def parse_collective(line: str, devices: int = 8):
    (parsed,) = CompiledText(HEADER + ENTRY.format(line=line)).collectives(devices)
    return parsed


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", "data"),
        ("{{0,1},{2,3},{4,5},{6,7}}", "model"),
        ("{}", "data, model"),
        ("[4,2]<=[8]", "model"),
        ("[2,4]<=[4,2]T(1,0)", "data"),
        ("[1,8]<=[8]", "data, model"),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", "data"),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_1'}", "data"),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", "data, model"),
        ("{{0,3},{1,2},{4,7},{5,6}}", "unknown"),
        ("mesh['axis_0'=8], device_ids=([8]<=[2,4]T(1,0)) {'axis_0'}", "unknown"),
    ],
)
def test_the_mesh_axis_of_a_collective_is_inferred_from_its_groups(groups, axis):
    parsed = parse_collective(
        f"%r = f32[16,8]{{1,0}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add, "
        'metadata={op_name="jit(step)/grad"}'
    )
    assert (parsed.kind, parsed.bytes, parsed.source) == (
        "all-reduce",
        16 * 8 * 4,
        "jit(step)/grad",
    )
    assert parsed.axis(MESH) == axis


def test_collectives_report_global_bytes_and_bytes_sent_in_a_ring():
    gathered = parse_collective(
        "%g = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=1, replica_groups=[1,4]<=[4]", 4
    )
    assert (gathered.bytes, gathered.bytes_sent) == (64 * 8 * 2, 64 * 8 * 2 * 3 / 4)
    scattered = parse_collective("%s = f32[4,8]{1,0} reduce-scatter(%a), replica_groups=[1,4]<=[4]", 4)
    assert (scattered.bytes, scattered.bytes_sent) == (16 * 8 * 4, 16 * 8 * 4 * 3 / 4)
    reduced = parse_collective(
        "%r = (f32[16,8]{1,0:T(8,128)S(1)}, /*index=1*/f32[8]{0}) all-reduce(%a, %a), replica_groups={{0,1,2,3}}", 4
    )
    assert (reduced.bytes, reduced.bytes_sent) == (2 * 16 * 8 * 4, 2 * 2 * 16 * 8 * 4 * 3 / 4)
    assert reduced.bytes_by_rows == {16: 16 * 8 * 4, 8: 8 * 4}
    assert reduced.bytes_by_dtype == {"f32": 2 * 16 * 8 * 4}


def test_collectives_report_bytes_by_dtype():
    line = "%r = (f32[16,8]{1,0}, bf16[6,8]{1,0}, f32[2]{0}) all-reduce-start(%a, %b, %c), replica_groups={{0,1,2,3}}"
    assert parse_collective(line, 4).bytes_by_dtype == {"f32": 16 * 8 * 4 + 2 * 4, "bf16": 6 * 8 * 2}
    line = "%s = (f32[16,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%a), replica_groups=[1,4]<=[4]"
    assert parse_collective(line, 4).bytes_by_dtype == {"f32": 64 * 8 * 4}


def test_asynchronous_collectives_are_counted_once():
    lines = """%s = (f32[16,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%a), channel_id=3, replica_groups=[1,4]<=[4]
  %d = f32[64,8]{1,0} all-gather-done(%s)
  %c = f32[64,8]{1,0} all-gather(%a), channel_id=3, replica_groups=[1,4]<=[4]"""
    assert parse_collective(lines, 4).bytes == 64 * 8 * 4


def test_the_mesh_axis_of_a_permutation_is_inferred_from_its_pairs():
    pairs = "{{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}}"
    parsed = parse_collective(
        f"%p = f32[16,8]{{1,0}} collective-permute(%a), channel_id=1, source_target_pairs={pairs}"
    )
    assert parsed.axis(MESH) == "data"


def test_collectives_of_a_compiled_program_are_parsed():
    mesh = Mesh(jax.devices()[:8], ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    lowered = jax.jit(lambda x: jnp.sum(x, 0), in_shardings=sharding).lower(jax.ShapeDtypeStruct((16, 5), jnp.float32))
    (parsed,) = CompiledText(lowered.compile().as_text()).collectives(8)
    assert (parsed.kind, parsed.bytes, parsed.axis({"data": 8})) == (
        "all-reduce",
        20,
        "data",
    )


CONVOLUTIONS = {
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 2), "padding": ((1, 1), (0, 1))},
    "cropped": {"window_strides": (1, 2), "padding": ((-1, 0), (0, 2))},
    "dilated": {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 1)},
    "transposed": {"window_strides": (1, 1), "padding": ((1, 2), (2, 2)), "lhs_dilation": (2, 2)},
    "grouped": {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_flops_of_convolutions_match_xla(name):
    settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **CONVOLUTIONS[name]}
    groups = settings.get("feature_group_count", 1)
    shapes = jax.ShapeDtypeStruct((2, 9, 7, 8), jnp.float32), jax.ShapeDtypeStruct((3, 3, 8 // groups, 12), jnp.float32)
    lowered = jax.jit(lambda x, k: lax.conv_general_dilated(x, k, **settings)).lower(*shapes)
    assert matrix_flops(CompiledText(lowered.as_text("hlo"))) == lowered.cost_analysis()["flops"] > 0


def test_flops_of_matmuls_are_twice_the_multiply_adds():
    shapes = jax.ShapeDtypeStruct((5, 4, 6), jnp.float32), jax.ShapeDtypeStruct((5, 6, 7), jnp.float32)
    lowered = jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b)).lower(*shapes)
    assert matrix_flops(CompiledText(lowered.as_text("hlo"))) == 2 * 5 * 4 * 6 * 7


def test_flops_are_counted_by_operand_type():
    shapes = jax.ShapeDtypeStruct((5, 4), jnp.bfloat16), jax.ShapeDtypeStruct((4, 6), jnp.bfloat16)

    def multiply_in_both_types(a, b):
        bfloat16_result = jnp.dot(a, b, preferred_element_type=jnp.float32)  # accumulated in float32
        return bfloat16_result, a.astype(jnp.float32) @ b.astype(jnp.float32)

    lowered = jax.jit(multiply_in_both_types).lower(*shapes)
    expected = 2 * 5 * 4 * 6
    assert matrix_flops_by_dtype(CompiledText(lowered.as_text("hlo"))) == {"bf16": expected, "f32": expected}


def test_traffic_includes_layout_padding():
    lines = """%b = bf16[100,30]{0,1:T(8,128)(2,1)S(1)} fusion(%a), calls=%in, metadata={op_name="jit(f)/decoder/mul"}
  %c = (bf16[100,30]{0,1:T(8,128)(2,1)}, bf16[100,30]{0,1:T(8,128)(2,1)S(1)}, u32[]) copy-start(%b)
  %d = bf16[100,30]{0,1:T(8,128)(2,1)} copy-done(%c)
  %e = f32[5]{0:T(128)S(1)} fusion(%d), calls=%in, metadata={op_name="jit(f)/encoder/add"}"""
    first, copy, last = CompiledText(HEADER + ENTRY.format(line=lines)).traffic()
    input_bytes, padded_bytes = 16 * 8 * 4, 128 * 32 * 2
    assert first == Traffic("jit(f)/decoder/mul", input_bytes + padded_bytes, padded_bytes)
    assert copy == Traffic("jit(f)/decoder/mul", 2 * padded_bytes, padded_bytes)
    assert last == Traffic("jit(f)/encoder/add", padded_bytes + 128 * 4, 128 * 4)


def test_operations_in_a_loop_are_counted_once_per_iteration():
    def multiply_slices(x, y):
        return lax.map(lambda row: row @ y, x)

    shapes = jax.ShapeDtypeStruct((7, 16, 32), jnp.float32), jax.ShapeDtypeStruct((32, 8), jnp.float32)
    lowered = jax.jit(multiply_slices).lower(*shapes)
    expected = 7 * 2 * 16 * 32 * 8
    for text in (lowered.as_text("hlo"), lowered.compile().as_text()):
        assert matrix_flops(CompiledText(text)) == expected


def test_loops_of_unknown_length_have_the_assumed_number_of_iterations():
    def multiply_until_large(x, y):
        def multiply(state):
            x, step = state
            return x @ y, step + 1

        return lax.while_loop(lambda state: (state[1] < 9) & (state[0].sum() < 100), multiply, (x, 0))[0]

    shapes = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((32, 32), jnp.float32)
    lowered = jax.jit(multiply_until_large).lower(*shapes)
    compiled = lowered.compile()
    once = 2 * 16 * 32 * 32
    for text in (lowered.as_text("hlo"), compiled.as_text()):
        assert matrix_flops(CompiledText(text)) == once
        assert matrix_flops(CompiledText(text, unknown_iterations=9)) == 9 * once
    costs = [compute_cost(lowered, compiled, 1, 1, unknown_iterations=count) for count in (1, 9)]
    assert 5 * costs[0].memory_bytes < costs[1].memory_bytes < 9.5 * costs[0].memory_bytes


def test_of_an_array_that_a_loop_slices_only_the_slices_are_counted():
    lines = """%s = f32[1,8]{1,0} dynamic-slice(%a, %i, %z), dynamic_slice_sizes={1,8}
  %f = f32[16,8]{1,0:T(8,128)S(1)} fusion(%u, %s, %i), kind=kLoop, calls=%update"""
    update = """%update (p: f32[16,8], q: f32[1,8], i: s32[]) -> f32[16,8] {
  %p = f32[16,8]{1,0} parameter(0)
  %q = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = f32[16,8]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}

"""
    sliced, updated = CompiledText(HEADER + update + ENTRY.format(line=lines)).traffic()
    row = 8 * 4
    assert (sliced.bytes, sliced.on_chip) == (2 * row, 0)
    assert (updated.bytes, updated.on_chip) == (2 * row, row)

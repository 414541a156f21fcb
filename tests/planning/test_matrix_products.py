"""Matrix products of a program: calls of GPU libraries, and operands that were converted from a narrower type."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from caption_jax.planning.hlo import CompiledText
from caption_jax.planning.matrix_products import list_products

# Instructions in the form in which XLA writes them for a GPU. The convolution has 3 x 3 kernels without padding.
GEMM = """ENTRY %main (a: bf16[5,4], b: bf16[4,6]) -> bf16[5,6] {
  %a = bf16[5,4]{1,0} parameter(0)
  %b = bf16[4,6]{1,0} parameter(1)
  %gemm = (bf16[5,6]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
metadata={op_name="jit(f)/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %result = bf16[5,6]{1,0} get-tuple-element(%gemm), index=0
}
"""
CONVOLUTION = """ENTRY %main (a: bf16[2,9,9,3], b: bf16[8,3,3,3]) -> bf16[2,7,7,8] {
  %a = bf16[SHAPE_A]{3,2,1,0} parameter(0)
  %b = bf16[SHAPE_B]{3,2,1,0} parameter(1)
  %conv = (bf16[SHAPE_C]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), window={size=3x3}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$TARGET"
  ROOT %result = bf16[SHAPE_C]{3,2,1,0} get-tuple-element(%conv), index=0
}
"""
INPUT, KERNEL, OUTPUT = "2,9,9,3", "8,3,3,3", "2,7,7,8"


def parse(text: str) -> CompiledText:
    return CompiledText("HloModule f\n\n" + text.replace("\\\n", ""))


def test_calls_of_cublas_are_matrix_products():
    (product,) = list_products(parse(GEMM))
    assert (product.flops, product.dtype, product.is_widened) == (2 * 5 * 4 * 6, "bf16", False)
    assert product.source == "jit(f)/dot_general"


@pytest.mark.parametrize(
    ("target", "shapes"),
    [
        ("convForward", (INPUT, KERNEL, OUTPUT)),
        ("convBackwardInput", (OUTPUT, KERNEL, INPUT)),
        ("convBackwardFilter", (INPUT, OUTPUT, KERNEL)),
    ],
)
def test_calls_of_cudnn_have_the_flops_of_the_forward_convolution(target, shapes):
    text = CONVOLUTION.replace("TARGET", target)
    for name, shape in zip("ABC", shapes, strict=True):
        text = text.replace(f"SHAPE_{name}", shape)
    (product,) = list_products(parse(text))
    assert product.flops == 2 * (2 * 7 * 7) * 8 * (3 * 3 * 3)


def test_operands_converted_from_a_narrower_type_are_reported():
    narrow = jax.ShapeDtypeStruct((5, 4), jnp.bfloat16), jax.ShapeDtypeStruct((4, 6), jnp.bfloat16)
    wide = jax.ShapeDtypeStruct((5, 4), jnp.float32), jax.ShapeDtypeStruct((4, 6), jnp.float32)

    def widen(a, b):
        return jnp.dot(a.astype(jnp.float32).T[:3].T, b.astype(jnp.float32)[:3])

    def accumulate(a, b):
        return jnp.dot(a, b, preferred_element_type=jnp.float32)

    for function, shapes, expected in ((widen, narrow, True), (widen, wide, False), (accumulate, narrow, False)):
        (product,) = list_products(CompiledText(jax.jit(function).lower(*shapes).as_text("hlo")))
        assert product.is_widened is expected

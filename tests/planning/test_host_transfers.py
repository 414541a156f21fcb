"""Transfers between the chip and the host are found in the text of a compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.planning.hlo import CompiledText
from caption_jax.planning.host_transfers import count_host_transfers


def count(function) -> dict[str, int]:
    return count_host_transfers(CompiledText(jax.jit(function).lower(jnp.zeros(4)).compile().as_text()))


def test_callbacks_are_counted_once_per_iteration():
    def call_host(values):
        with jax.named_scope("score"):
            return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4,), np.float32), values)

    ((source, number),) = count(call_host).items()
    assert "score" in source and number == 1
    assert sum(count(lambda values: jax.lax.fori_loop(0, 3, lambda _, v: call_host(v), values)).values()) == 3


def test_a_program_on_the_chip_has_none():
    assert count(lambda values: jnp.sort(jnp.sin(values))) == {}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%c = f32[4]{0:T(128)S(5)} copy(%a)", {"copy": 1}),
        ("%c = (f32[4]{0:S(5)}, f32[4]{0}, u32[]) copy-start(%a)", {"copy-start": 1}),
        ("%c = f32[4]{0:T(128)S(1)} copy(%a)", {}),
        ("%s = (f32[4]{0}, u32[], token[]) send(%a), channel_id=1, is_host_transfer=true", {"send": 1}),
        ("%s = (f32[4]{0}, u32[], token[]) send(%a), channel_id=1", {}),
        ('%o = token[] outfeed(%a), metadata={op_name="jit(step)/debug"}', {"jit(step)/debug": 1}),
        ('%m = f32[4]{0} custom-call(%a), custom_call_target="MoveToHost"', {"custom-call": 1}),
        ('%m = f32[4]{0} custom-call(%a), custom_call_target="TopK"', {}),
    ],
)
def test_transfers_of_accelerators_are_recognised(line, expected):
    text = f"HloModule step\n\nENTRY %main (a: f32[4]) -> f32[4] {{\n  %a = f32[4]{{0}} parameter(0)\n  {line}\n}}\n"
    assert count_host_transfers(CompiledText(text)) == expected

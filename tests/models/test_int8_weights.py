"""The modules of a captioner multiply by quantised kernels as integers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.models.build import build_model
from caption_jax.parameters.stored_dtypes import convert_weights, restore
from caption_jax.specs import DecoderSpec, ModelSpec

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
TOKENS = np.array([[[0, 5, 9, 7]], [[0, 4, 8, 2]]], np.int32)


def make_model(ops: str):
    decoder = DecoderSpec(layers=1, width=96, heads=4, feed_forward=128)
    return build_model(ModelSpec(ops=ops, encoder=EfficientNetBackbone("micro"), decoder=decoder), 120, 8)


@pytest.fixture(scope="module")
def variables() -> dict:
    drawn = random_variables(make_model("fast"), IMAGES[:1], TOKENS[:1])
    return convert_weights(jax.tree.map(np.asarray, drawn), "int8")


def compute_logits(model, variables):
    variables = restore(variables)
    features = model.apply(variables, IMAGES, train=False, method="encode_images")
    return model.apply(variables, TOKENS, features, method="decode").logits


def test_each_quantised_kernel_is_multiplied_as_integers(variables):
    decoder = variables["params"]["decoder"]
    quantised = [kernel for layer in decoder["layer_0"].values() for kernel in layer.values() if "kernel" in kernel]
    assert len(quantised) == 7 and all("int8" in layer["kernel"] for layer in quantised)
    program = str(jax.make_jaxpr(lambda tree: compute_logits(make_model("fast"), tree))(variables))
    products = program.count("preferred_element_type=int32")
    assert products >= len(quantised) + 1  # and the logits
    reference = str(jax.make_jaxpr(lambda tree: compute_logits(make_model("reference"), tree))(variables))
    assert "preferred_element_type=int32" not in reference


@pytest.mark.slow
def test_logits_are_near_those_of_the_dequantised_weights(variables):
    exact = jax.jit(lambda tree: compute_logits(make_model("fast"), tree))(convert_weights(variables, "float32"))
    reference = jax.jit(lambda tree: compute_logits(make_model("reference"), tree))(variables)
    np.testing.assert_allclose(reference, exact, rtol=1e-3, atol=1e-3)
    logits = jax.jit(lambda tree: compute_logits(make_model("fast"), tree))(variables)
    assert np.abs(logits - exact).mean() < 0.05 * np.std(exact)

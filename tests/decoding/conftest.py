"""Decoding tests compile many small programs and run each briefly."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def compile_quickly():
    """Leaves most of the compiler's optimisations out."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)

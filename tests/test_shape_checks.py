"""The shapes in signatures hold while tests run."""

from __future__ import annotations

import ast

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from shape_checks import ROOT, modules_with_shapes

from caption_jax.decoding.decoded import Decoded, gather_rows
from input_pipeline.tokenizer import Vocabulary


def test_arguments_and_results_have_the_shapes_and_types_that_signatures_state():
    array, rows = jnp.zeros((2, 3, 4)), jnp.zeros((2, 1), jnp.int32)
    assert gather_rows(array, rows).shape == (2, 1, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'rows'"):
        gather_rows(array, rows[:1])  # one row for two images, which would broadcast
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'rows'"):
        gather_rows(array, rows.astype(jnp.float32))
    with pytest.raises(jaxtyping.TypeCheckError, match="the return value"):
        _ = Decoded(rows, rows, rows).tokens  # a tree may hold anything, its `tokens` are [batch, length]


def test_the_input_pipeline_is_checked_too():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'ids'"):
        Vocabulary.to_full(None, np.zeros(3))


def test_trees_are_built_of_any_leaves():
    tree = Decoded(jnp.zeros((2, 1, 3), jnp.int32), jnp.zeros((2, 1, 3)), jnp.zeros((2, 1)))
    assert jax.tree.map(lambda leaf: leaf.dtype, tree).all_scores == jnp.float32
    assert jax.vmap(lambda leaf: leaf)(jax.tree.map(lambda leaf: leaf[None], tree)).all_scores.shape == (1, 2, 1)


def test_every_stated_shape_can_be_read():
    """A shape that jaxtyping cannot read, such as one with two variadic axes, would be left unchecked in silence."""
    shapes = [shape for module in modules_with_shapes() for shape in stated_shapes(module)]
    assert len(shapes) > 300
    for shape in shapes:
        jaxtyping.Shaped[np.ndarray, ast.literal_eval(shape)]


def stated_shapes(module: str) -> list[ast.expr]:
    """The second arguments of all annotations such as `Float[Array, "batch width"]`."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    subscripts = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Subscript)]
    return [
        node.slice.elts[1] for node in subscripts if is_array_type(node.value) and isinstance(node.slice, ast.Tuple)
    ]


def is_array_type(node: ast.expr) -> bool:
    named = getattr(jaxtyping, ast.unparse(node), None)
    return isinstance(named, type) and issubclass(named, jaxtyping.AbstractDtype)

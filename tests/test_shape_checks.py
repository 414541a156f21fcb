"""Shapes in signatures are checked while tests run."""

from __future__ import annotations

import ast

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from shape_checks import ROOT, find_annotated_modules

from caption_jax.decoding.decoded import Decoded, gather_rows
from input_pipeline.tokenizer import Vocabulary


def test_arguments_and_results_of_the_wrong_shape_or_type_are_rejected():
    array, rows = jnp.zeros((2, 3, 4)), jnp.zeros((2, 1), jnp.int32)
    assert gather_rows(array, rows).shape == (2, 1, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'rows'"):
        gather_rows(array, rows[:1])  # would broadcast over the two images
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'rows'"):
        gather_rows(array, rows.astype(jnp.float32))
    with pytest.raises(jaxtyping.TypeCheckError, match="the return value"):
        _ = Decoded(rows, rows, rows).tokens  # fields of a pytree are not checked, but this property is


def test_the_input_pipeline_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'ids'"):
        Vocabulary.to_full(None, np.zeros(3))


def test_pytrees_accept_any_leaves():
    tree = Decoded(jnp.zeros((2, 1, 3), jnp.int32), jnp.zeros((2, 1, 3)), jnp.zeros((2, 1)))
    assert jax.tree.map(lambda leaf: leaf.dtype, tree).all_scores == jnp.float32
    assert jax.vmap(lambda leaf: leaf)(jax.tree.map(lambda leaf: leaf[None], tree)).all_scores.shape == (1, 2, 1)


def test_jaxtyping_can_parse_every_annotated_shape():
    """Shapes that jaxtyping cannot parse, such as those with two variadic axes, would silently not be checked."""
    shapes = [shape for module in find_annotated_modules() for shape in find_annotated_shapes(module)]
    assert len(shapes) > 300
    for shape in shapes:
        jaxtyping.Shaped[np.ndarray, ast.literal_eval(shape)]


def find_annotated_shapes(module: str) -> list[ast.expr]:
    """Returns the second arguments of all annotations such as `Float[Array, "batch width"]`."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    subscripts = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Subscript)]
    return [
        node.slice.elts[1] for node in subscripts if is_array_type(node.value) and isinstance(node.slice, ast.Tuple)
    ]


def is_array_type(node: ast.expr) -> bool:
    array_type = getattr(jaxtyping, ast.unparse(node), None)
    return isinstance(array_type, type) and issubclass(array_type, jaxtyping.AbstractDtype)

"""Parameters by path, such as "decoder/layer_0/self_attention/qkv/kernel", and regular expressions over paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from flax import traverse_util

from caption_jax.errors import ConfigError
from caption_jax.specs.rule_syntax import compile_pattern

PyTree = Any

_SHOWN = 10


def flatten(tree: PyTree) -> dict[str, Any]:
    """Returns `{path: leaf}` of a nested dictionary, paths joined by "/"."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> PyTree:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def match_paths(paths: Iterable[str], patterns: Sequence[str], key: str, *, every: bool) -> dict[str, int]:
    """Returns the index of the one pattern that matches each path as a whole (`re.fullmatch`), by path.

    Args:
        paths: parameter paths.
        patterns: regular expressions.
        key: config key the patterns came from, for the errors.
        every: whether a path that nothing matches is an error; otherwise it is left out of the result.

    Raises:
        ConfigError: a path matches several patterns, or none where `every`; a pattern matches nothing or is no regular
            expression. The message names the paths and patterns, and near misses where there are any.
    """
    paths = list(paths)
    expressions = [compile_pattern(pattern, key) for pattern in patterns]
    matches = {path: [i for i, e in enumerate(expressions) if e.fullmatch(path)] for path in paths}
    used = {i for indices in matches.values() for i in indices}
    problems = [_idle_pattern(patterns[i], expressions[i], paths) for i in range(len(patterns)) if i not in used]
    problems += _ambiguous({path: indices for path, indices in matches.items() if len(indices) > 1}, patterns)
    if every:
        problems += _unmatched([path for path, indices in matches.items() if not indices], patterns)
    if problems:
        raise ConfigError(f"config.{key} and the model's parameters do not fit:\n" + "\n".join(problems))
    return {path: indices[0] for path, indices in matches.items() if indices}


def _idle_pattern(pattern: str, expression: re.Pattern, paths: list[str]) -> str:
    inside = [path for path in paths if expression.search(path)]
    if inside:
        hint = f"it matches only a part of {_listed(inside, 3)}; a pattern has to match the whole path: try adding '.*'"
    else:
        # Compared with each path and each of its leading parts, as a pattern often names a module.
        bare = re.sub(r"\\(.)|[.*+?^$()\[\]{}|]", r"\1", pattern).strip("/")
        parts = {"/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 2)}
        near = difflib.get_close_matches(bare, sorted(parts), n=3, cutoff=0.5)
        hint = f"near it: {_listed(near, 3)}" if near else f"the parameters are {_listed(paths, _SHOWN)}"
    return f"  {pattern!r} matches no parameter; {hint}."


def _ambiguous(matches: dict[str, list[int]], patterns: Sequence[str]) -> list[str]:
    by_rules: dict[tuple[int, ...], list[str]] = {}
    for path, indices in matches.items():
        by_rules.setdefault(tuple(indices), []).append(path)
    return [
        f"  {' and '.join(repr(patterns[i]) for i in indices)} all match {_listed(paths, _SHOWN)}; each parameter "
        "needs exactly one rule: narrow one of them, e.g. with a leading '(?!image_encoder/)'."
        for indices, paths in by_rules.items()
    ]


def _unmatched(paths: list[str], patterns: Sequence[str]) -> list[str]:
    if not paths:
        return []
    near = difflib.get_close_matches(paths[0], list(patterns), n=1, cutoff=0.4)
    hint = f" The nearest pattern is {near[0]!r}." if near else ""
    return [f"  no rule matches {_listed(paths, _SHOWN)}; add a rule for them.{hint}"]


def _listed(items: Sequence[str], most: int) -> str:
    shown = ", ".join(repr(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"

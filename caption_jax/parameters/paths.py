"""Parameter paths, such as "decoder/layer_0/self_attention/qkv/kernel", and regular expressions that match them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from flax import traverse_util

from caption_jax.errors import ConfigError
from caption_jax.specs.rule_syntax import compile_pattern

PyTree = Any

_MAX_LISTED = 10


def flatten(tree: PyTree) -> dict[str, Any]:
    """Flattens a nested dictionary to `{path: leaf}`, with path components joined by "/"."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> PyTree:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def match_paths(paths: Iterable[str], patterns: Sequence[str], key: str, *, every: bool) -> dict[str, int]:
    """Returns, for each path, the index of the only pattern that matches it in full (`re.fullmatch`).

    Args:
        paths: parameter paths.
        patterns: regular expressions.
        key: config key of the patterns, for error messages.
        every: whether unmatched paths are an error; otherwise they are omitted from the result.

    Raises:
        ConfigError: a path matches several patterns, a path matches no pattern although `every` is set, or a pattern
            matches nothing or is not a valid regular expression. The message lists the paths and patterns, with close
            matches if there are any.
    """
    paths = list(paths)
    expressions = [compile_pattern(pattern, key) for pattern in patterns]
    matches = {path: [i for i, e in enumerate(expressions) if e.fullmatch(path)] for path in paths}
    used = {i for indices in matches.values() for i in indices}
    problems = [_unused_pattern(patterns[i], expressions[i], paths) for i in range(len(patterns)) if i not in used]
    problems += _ambiguous({path: indices for path, indices in matches.items() if len(indices) > 1}, patterns)
    if every:
        problems += _unmatched([path for path, indices in matches.items() if not indices], patterns)
    if problems:
        raise ConfigError(f"config.{key} does not match the model's parameters:\n" + "\n".join(problems))
    return {path: indices[0] for path, indices in matches.items() if indices}


def _unused_pattern(pattern: str, expression: re.Pattern, paths: list[str]) -> str:
    partial = [path for path in paths if expression.search(path)]
    if partial:
        hint = f"it matches only a part of {_listed(partial, 3)}. Patterns must match the whole path; try adding '.*'."
    else:
        # Compares with all paths and their prefixes, because patterns often start with the name of a module.
        literal = re.sub(r"\\(.)|[.*+?^$()\[\]{}|]", r"\1", pattern).strip("/")
        prefixes = {"/".join(path.split("/")[:n]) for path in paths for n in range(1, path.count("/") + 2)}
        close = difflib.get_close_matches(literal, sorted(prefixes), n=3, cutoff=0.5)
        hint = f"did you mean {_listed(close, 3)}?" if close else f"the parameters are {_listed(paths, _MAX_LISTED)}."
    return f"  {pattern!r} matches no parameter; {hint}"


def _ambiguous(matches: dict[str, list[int]], patterns: Sequence[str]) -> list[str]:
    paths_by_patterns: dict[tuple[int, ...], list[str]] = {}
    for path, indices in matches.items():
        paths_by_patterns.setdefault(tuple(indices), []).append(path)
    return [
        f"  {' and '.join(repr(patterns[i]) for i in indices)} all match {_listed(paths, _MAX_LISTED)}; each "
        "parameter must match exactly one rule: restrict one of them, e.g. with a leading '(?!image_encoder/)'."
        for indices, paths in paths_by_patterns.items()
    ]


def _unmatched(paths: list[str], patterns: Sequence[str]) -> list[str]:
    if not paths:
        return []
    close = difflib.get_close_matches(paths[0], list(patterns), n=1, cutoff=0.4)
    hint = f" The closest pattern is {close[0]!r}." if close else ""
    return [f"  no rule matches {_listed(paths, _MAX_LISTED)}; add a rule for them.{hint}"]


def _listed(items: Sequence[str], limit: int) -> str:
    listed = ", ".join(repr(item) for item in items[:limit])
    return listed if len(items) <= limit else f"{listed} and {len(items) - limit} more"

"""Parameter paths, such as "decoder/layer_0/self_attention/qkv/kernel", and matching by regular expressions."""

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
    """Restores the nested dictionary from `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def match_paths(paths: Iterable[str], patterns: Sequence[str], key: str, *, require_all: bool) -> dict[str, int]:
    """Matches each path with exactly one pattern (`re.fullmatch`), and returns the index of the pattern by path.

    Args:
        paths: parameter paths.
        patterns: regular expressions.
        key: config key of the patterns, for error messages.
        require_all: whether unmatched paths are an error; otherwise they are omitted from the result.

    Raises:
        ConfigError: a path matches several patterns, a path matches no pattern although `require_all` is set, or a
            pattern matches nothing or is not a valid regular expression. The message lists the paths and patterns, with
            close matches if there are any.
    """
    paths = list(paths)
    regexes = [compile_pattern(pattern, key) for pattern in patterns]
    matches = {path: [i for i, regex in enumerate(regexes) if regex.fullmatch(path)] for path in paths}
    used = {i for indices in matches.values() for i in indices}
    problems = [_describe_unused(patterns[i], regexes[i], paths) for i in range(len(patterns)) if i not in used]
    problems += _describe_ambiguous({path: indices for path, indices in matches.items() if len(indices) > 1}, patterns)
    if require_all:
        problems += _describe_unmatched([path for path, indices in matches.items() if not indices], patterns)
    if problems:
        raise ConfigError(f"config.{key} does not match the model's parameters:\n" + "\n".join(problems))
    return {path: indices[0] for path, indices in matches.items() if indices}


def _describe_unused(pattern: str, regex: re.Pattern, paths: list[str]) -> str:
    partial_matches = [path for path in paths if regex.search(path)]
    if partial_matches:
        names = _join_names(partial_matches, 3)
        hint = f"it matches only a part of {names}. Patterns must match the whole path; try adding '.*'."
    else:
        # Compare with all paths and their prefixes, because patterns often start with the name of a module.
        literal = re.sub(r"\\(.)|[.*+?^$()\[\]{}|]", r"\1", pattern).strip("/")
        prefixes = {"/".join(path.split("/")[:end]) for path in paths for end in range(1, path.count("/") + 2)}
        close_matches = difflib.get_close_matches(literal, sorted(prefixes), n=3, cutoff=0.5)
        if close_matches:
            hint = f"did you mean {_join_names(close_matches, 3)}?"
        else:
            hint = f"the parameters are {_join_names(paths, _MAX_LISTED)}."
    return f"  {pattern!r} matches no parameter; {hint}"


def _describe_ambiguous(matches: dict[str, list[int]], patterns: Sequence[str]) -> list[str]:
    paths_by_patterns: dict[tuple[int, ...], list[str]] = {}
    for path, indices in matches.items():
        paths_by_patterns.setdefault(tuple(indices), []).append(path)
    return [
        f"  {' and '.join(repr(patterns[i]) for i in indices)} all match {_join_names(paths, _MAX_LISTED)}; each "
        "parameter must match exactly one rule: restrict one of them, e.g. with a leading '(?!image_encoder/)'."
        for indices, paths in paths_by_patterns.items()
    ]


def _describe_unmatched(paths: list[str], patterns: Sequence[str]) -> list[str]:
    if not paths:
        return []
    close_matches = difflib.get_close_matches(paths[0], list(patterns), n=1, cutoff=0.4)
    hint = f" The closest pattern is {close_matches[0]!r}." if close_matches else ""
    return [f"  no rule matches {_join_names(paths, _MAX_LISTED)}; add a rule for them.{hint}"]


def _join_names(names: Sequence[str], limit: int) -> str:
    joined = ", ".join(repr(name) for name in names[:limit])
    return joined if len(names) <= limit else f"{joined} and {len(names) - limit} more"

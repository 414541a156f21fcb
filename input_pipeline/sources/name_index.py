"""Image names as people write them, matched with the files that exist.

Caption files come from other programs and other machines: the extension is in another case or missing, folders are
missing, added or separated by backslashes. A name matches a file if they differ only in these ways, and if no other
file fits equally well.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

_DRIVE_OR_SCHEME = re.compile(r"^(?:[A-Za-z]:(?=[\\/])|[A-Za-z][A-Za-z0-9+.-]+://)")
# A name without an extension does not match these files.
_OTHER_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".md", ".npy", ".npz", ".zip")
_MAX_COMPARED = 2000  # number of names that are compared with a missing one to find the nearest

CASE = "in another case"
NO_EXTENSION = "without the extension"
BACKSLASH = "with backslashes"
SUBFOLDER = "in a subfolder"
LEADING_FOLDERS = "with other leading folders"
UNICODE = "in another Unicode form"
BESIDE_CAPTIONS = "relative to the caption file"


@dataclasses.dataclass(frozen=True)
class Match:
    """The files that fit a name best.

    Attributes:
        paths: exactly one if the match is unambiguous.
        differences: how the name differs from the path.
    """

    paths: tuple[str, ...]
    differences: tuple[str, ...]


class NameIndex:
    """Paths that can be found by names that differ in case, extension, folders or separators.

    Args:
        paths: paths relative to the image folder, separated by slashes. Paths with components that start with a dot
            belong to the operating system or to other programs and should be omitted.
    """

    def __init__(self, paths: Iterable[str]):
        self.paths = sorted(set(paths))
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in self.paths:
            name = _fold(path.rpartition("/")[2])
            self._by_name.setdefault(name, []).append(path)
            stem, _, suffix = name.rpartition(".")
            if stem and f".{suffix}" not in _OTHER_SUFFIXES:
                self._by_stem.setdefault(stem, []).append(path)

    def find(self, name: str) -> Match:
        """Returns the paths that fit a name best; none if there are none.

        A path with the extension fits better than one without, then one in the same case, then one with more folders
        in common.
        If the name is absolute, its folders belong to another machine, so that only their last ones are compared.
        """
        parts, is_absolute = _split(name)
        if not parts:
            return Match((), ())
        key = _fold(parts[-1])
        candidates = [(path, ()) for path in self._by_name.get(key, ())]
        candidates = candidates or [(path, (NO_EXTENSION,)) for path in self._by_stem.get(key, ())]
        fitting: dict[tuple, list[tuple[str, tuple[str, ...]]]] = {}
        for path, differences in candidates:
            comparison = _compare(parts, path.split("/"), is_absolute, has_extension=not differences)
            if comparison is not None:
                cost, more = comparison
                fitting.setdefault(cost, []).append((path, (*differences, *more)))
        if not fitting:
            return Match((), ())
        best = fitting[min(fitting)]
        separators = (BACKSLASH,) if "\\" in name else ()
        return Match(tuple(path for path, _ in best), (*separators, *best[0][1]))

    def find_nearest(self, name: str) -> str:
        """Returns the path whose file name is most similar to a name; "" if there are no paths."""
        key = _fold((_split(name)[0] or [""])[-1])
        stem = key.rpartition(".")[0] or key
        same = self._by_name.get(key) or self._by_stem.get(stem)
        if same:
            return same[0]
        names = self._by_name
        if len(names) > _MAX_COMPARED:
            ordered = sorted(names)
            position = bisect.bisect(ordered, key)
            names = ordered[max(position - _MAX_COMPARED // 2, 0) : position + _MAX_COMPARED // 2]
        nearest = difflib.get_close_matches(key, names, n=1, cutoff=0)
        return self._by_name[nearest[0]][0] if nearest else ""


class MatchCounts:
    """Counts names that differ from what they matched, for one line of the log."""

    def __init__(self):
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._total = 0

    def add(self, name: str, path: str, differences: Sequence[str]) -> None:
        """Counts one name."""
        self._total += 1
        for difference in differences:
            self._counts[difference] += 1
            self._examples.setdefault(difference, f"{name} for {path}")

    def __bool__(self) -> bool:
        return self._total > 0

    def __str__(self) -> str:
        kinds = [f"{count} {kind} ({self._examples[kind]})" for kind, count in self._counts.most_common()]
        return f"{self._total} matched with differences: {', '.join(kinds)}"


def _compare(
    name: list[str], path: list[str], is_absolute: bool, has_extension: bool
) -> tuple[tuple[int, int, int], list[str]] | None:
    """Returns the cost and the differences of a path whose file name fits, or None if its folders contradict the name.

    The cost is compared in the order case, number of components in common, subfolders.
    """
    base = path[-1] if has_extension else path[-1].rpartition(".")[0]
    path = [*path[:-1], base]
    common = 0
    for one, other in zip(reversed(name), reversed(path), strict=False):
        if _fold(one) != _fold(other):
            break
        common += 1
    if common < min(len(name), len(path)) and not is_absolute:
        return None
    pairs = list(zip(name[-common:], path[-common:], strict=True))
    differences = []
    has_same_form = all(unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b) for a, b in pairs)
    if not has_same_form:
        differences.append(CASE)
    elif any(a != b for a, b in pairs):
        differences.append(UNICODE)
    if len(path) > common:
        differences.append(SUBFOLDER)
    if len(name) > common:
        differences.append(LEADING_FOLDERS)
    return (int(not has_same_form), -common, int(len(path) > common)), differences


def _split(name: str) -> tuple[list[str], bool]:
    """Returns the components of a path of any system, and whether it is absolute."""
    name = name.strip()
    stripped = _DRIVE_OR_SCHEME.sub("", name).replace("\\", "/")
    parts = [part for part in stripped.split("/") if part not in ("", ".")]
    return parts, stripped != name.replace("\\", "/") or stripped.startswith("/")


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()

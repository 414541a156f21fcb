"""Scenes of coloured shapes and their captions.

A scene is one group of identical objects at one side of the image, or two groups, side by side or one above the other.
Its five reference captions are determined by its content, from the same sentence templates for every scene of a kind. A
captioner that uses the image can therefore reproduce a reference exactly, while one that ignores it has to guess among
tens of thousands of scenes.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

SHAPES = {  # singular: plural
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "ring": "rings",
    "cross": "crosses",
}
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SIZES = ("small", "large")
COUNTS = (1, 2, 3)
# Position of the first group; a second group is on the opposite side.
SIDES = ("left", "right", "top", "bottom")

_NUMBER = {1: "a", 2: "two", 3: "three"}
_OTHER_SIZE_WORD = {"small": "little", "large": "big"}
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
_AT = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_RELATION = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}
_SHORT_RELATION = {"left": "left of", "right": "right of", "top": "over", "bottom": "under"}

_Option = TypeVar("_Option")


@dataclasses.dataclass(frozen=True)
class Group:
    """Identical objects: their number, size, colour and shape."""

    count: int
    size: str
    colour: str
    shape: str

    def words(self, *, other_words: bool = False) -> str:
        """Noun phrase of the group, such as "three small red circles"; `other_words` selects "little" and "big"."""
        size = _OTHER_SIZE_WORD[self.size] if other_words else self.size
        noun = self.shape if self.count == 1 else SHAPES[self.shape]
        return f"{_NUMBER[self.count]} {size} {self.colour} {noun}"

    @property
    def verb(self) -> str:
        """The form of "to be" that agrees with the group."""
        return "is" if self.count == 1 else "are"


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of an image: `first` at `side`, and optionally `second` at the opposite side."""

    first: Group
    side: str
    second: Group | None = None

    def captions(self) -> tuple[str, ...]:
        """Five captions, each of which fully describes the scene."""
        return self._one_group() if self.second is None else self._two_groups(self.second)

    def _one_group(self) -> tuple[str, ...]:
        group, at = self.first, _AT[self.side]
        return (
            f"{group.words()} {at}",
            f"there {group.verb} {group.words()} {at}",
            f"{at} {group.verb} {group.words()}",
            f"{group.words()} {at} of the picture",
            f"the picture shows {group.words(other_words=True)} {at}",
        )

    def _two_groups(self, second: Group) -> tuple[str, ...]:
        first, side, opposite = self.first, self.side, _OPPOSITE[self.side]
        return (
            f"{first.words()} {_RELATION[side]} {second.words()}",
            f"{second.words()} {_RELATION[opposite]} {first.words()}",
            f"there {first.verb} {first.words()} {_RELATION[side]} {second.words()}",
            f"{first.words()} {_AT[side]} and {second.words()} {_AT[opposite]}",
            f"the picture shows {first.words(other_words=True)} {_SHORT_RELATION[side]} "
            f"{second.words(other_words=True)}",
        )


def scenes(seed: int) -> Iterator[Scene]:
    """Infinite stream of distinct scenes, deterministic for a given seed.

    About one scene in twelve has a single group. The first of two groups is always the left or the top one, so that
    each image corresponds to exactly one scene and one set of captions.
    """
    rng = random.Random(f"shapes scenes {seed}")
    seen: set[Scene] = set()
    while True:
        if rng.random() < 1 / 12:
            scene = Scene(_group(rng), pick(rng, SIDES))
        else:
            first, second = _group(rng), _group(rng)
            if (first.colour, first.shape) == (second.colour, second.shape):
                continue
            scene = Scene(first, pick(rng, ("left", "top")), second)
        if scene not in seen:
            seen.add(scene)
            yield scene


def pick(rng: random.Random, options: Sequence[_Option]) -> _Option:
    """Picks one of `options`, using only `random()`, whose sequence Python guarantees to be stable across versions."""
    return options[int(rng.random() * len(options))]


def _group(rng: random.Random) -> Group:
    return Group(pick(rng, COUNTS), pick(rng, SIZES), pick(rng, COLOURS), pick(rng, tuple(SHAPES)))

"""Scenes of coloured shapes and their captions.

A scene is one group of identical objects at one side of the image, or two groups, side by side or one above the other.
The five reference captions of a scene follow fixed sentence templates and depend only on its content. A captioner that
uses the image can therefore reproduce a reference exactly; without the image, it has to guess among tens of thousands
of scenes.
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

_COUNT_WORD = {1: "a", 2: "two", 3: "three"}
_SIZE_SYNONYM = {"small": "little", "large": "big"}
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
_LOCATION = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_RELATION = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}
_SHORT_RELATION = {"left": "left of", "right": "right of", "top": "over", "bottom": "under"}

_Option = TypeVar("_Option")


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of identical objects."""

    count: int
    size: str
    colour: str
    shape: str

    def describe(self, *, use_synonyms: bool = False) -> str:
        """Returns a noun phrase such as "three small red circles"; `use_synonyms` selects "little" and "big"."""
        size = _SIZE_SYNONYM[self.size] if use_synonyms else self.size
        noun = self.shape if self.count == 1 else SHAPES[self.shape]
        return f"{_COUNT_WORD[self.count]} {size} {self.colour} {noun}"

    @property
    def verb(self) -> str:
        """The form of "to be" that agrees with the number of objects."""
        return "is" if self.count == 1 else "are"


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of an image: group `first` at `side`, and optionally group `second` at the opposite side."""

    first: Group
    side: str
    second: Group | None = None

    def captions(self) -> tuple[str, ...]:
        """Returns five captions that each fully describe the scene."""
        return self._caption_one_group() if self.second is None else self._caption_two_groups(self.second)

    def _caption_one_group(self) -> tuple[str, ...]:
        group, location = self.first, _LOCATION[self.side]
        return (
            f"{group.describe()} {location}",
            f"there {group.verb} {group.describe()} {location}",
            f"{location} {group.verb} {group.describe()}",
            f"{group.describe()} {location} of the picture",
            f"the picture shows {group.describe(use_synonyms=True)} {location}",
        )

    def _caption_two_groups(self, second: Group) -> tuple[str, ...]:
        first, side, opposite = self.first, self.side, _OPPOSITE[self.side]
        return (
            f"{first.describe()} {_RELATION[side]} {second.describe()}",
            f"{second.describe()} {_RELATION[opposite]} {first.describe()}",
            f"there {first.verb} {first.describe()} {_RELATION[side]} {second.describe()}",
            f"{first.describe()} {_LOCATION[side]} and {second.describe()} {_LOCATION[opposite]}",
            f"the picture shows {first.describe(use_synonyms=True)} {_SHORT_RELATION[side]} "
            f"{second.describe(use_synonyms=True)}",
        )


def generate_scenes(seed: int) -> Iterator[Scene]:
    """Yields an infinite stream of distinct scenes, deterministic for a given seed.

    About one scene in twelve has a single group. The first of two groups is always on the left or at the top, so each
    image corresponds to exactly one scene and one set of captions.
    """
    rng = random.Random(f"shapes scenes {seed}")
    seen: set[Scene] = set()
    while True:
        if rng.random() < 1 / 12:
            scene = Scene(_sample_group(rng), choose(rng, SIDES))
        else:
            first, second = _sample_group(rng), _sample_group(rng)
            if (first.colour, first.shape) == (second.colour, second.shape):
                continue
            scene = Scene(first, choose(rng, ("left", "top")), second)
        if scene not in seen:
            seen.add(scene)
            yield scene


def choose(rng: random.Random, options: Sequence[_Option]) -> _Option:
    """Returns a random option. Uses only `random()`, whose sequence Python guarantees to be stable across versions."""
    return options[int(rng.random() * len(options))]


def _sample_group(rng: random.Random) -> Group:
    return Group(choose(rng, COUNTS), choose(rng, SIZES), choose(rng, COLOURS), choose(rng, tuple(SHAPES)))

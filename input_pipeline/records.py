"""Captioned images before decoding: one record per image, splits of records, and reports of problems."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from input_pipeline.errors import ConfigError, DataError
from input_pipeline.terminal_text import escape_message

SPLITS = ("train", "val", "test")
MAX_LISTED = 10  # maximum number of problems of each kind that a report lists
_MAX_CHARACTERS = 1000  # of the description of a problem

log = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """An encoded image with all its captions.

    Attributes:
        image: file of the encoded image, or a function that returns its bytes.
        captions: at least one if the split is used for training or evaluation.
        image_id: unique across all splits.
        name: name of the image in messages; defaults to the path, or to the id if there is no file.
    """

    image: Path | Callable[[], bytes]
    captions: tuple[str, ...]
    image_id: str | int
    name: str = ""

    def __post_init__(self):
        if not self.name:
            is_file = isinstance(self.image, Path)
            object.__setattr__(self, "name", str(self.image) if is_file else f"image {self.image_id}")

    @property
    def block(self) -> Hashable:
        """The row group or shard that holds the image; the id of an image that is stored on its own."""
        return getattr(self.image, "block", self.image_id)

    def source(self) -> Path | bytes:
        """Returns the input of `images.decode_image`: the path or the encoded bytes."""
        return self.image() if callable(self.image) else self.image


def order_by_hash(items: Iterable[Item], get_id: Callable[[Item], str | int]) -> list[Item]:
    """Shuffles items by a hash of their image ids, which does not depend on the machine or the order of the items."""
    return sorted(items, key=lambda item: hashlib.blake2b(repr(get_id(item)).encode()).digest())


@dataclasses.dataclass(frozen=True)
class SplitPart:
    """Consecutive images of a split, from one part of a mixture.

    Attributes:
        name: name of the part.
        images: number of images, at least 1.
        images_per_epoch: number of images that an epoch of the mixture draws from the part, at least 1.
        shuffle_window: `config.data.shuffle_window` of the part.
    """

    name: str
    images: int
    images_per_epoch: int
    shuffle_window: int


class Split(Sequence[Record]):
    """The records of one split, in a fixed order.

    Args:
        name: "train", "val" or "test".
        records: the records.
        parts: the parts of the training split of a mixture, in the order of their records; () if it is not a mixture.
    """

    def __init__(self, name: str, records: Sequence[Record], parts: Sequence[SplitPart] = ()):
        self.name = name
        self.records = records
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} images)"

    @property
    def image_ids(self) -> list[str | int]:
        """The id of each image, in the order of the records."""
        return [record.image_id for record in self.records]

    @property
    def captions(self) -> list[str]:
        """All captions, in the order of the images."""
        return [caption for record in self.records for caption in record.captions]

    @property
    def references(self) -> dict[str | int, list[str]]:
        """Captions by image id, in the format of the references of `caption_jax.metrics.score`."""
        return {record.image_id: list(record.captions) for record in self.records}

    def take(self, count: int) -> Split:
        """Returns the first `count` images, or all of them if `count` is 0."""
        return Split(self.name, self.records[:count]) if 0 < count < len(self) else self


def check_splits(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Checks that every image id occurs only once across all splits, and returns the splits.

    Raises:
        DataError: an id occurs more than once. The message lists the first ten such ids and their splits.
    """
    split_by_id: dict[str | int, str] = {}
    report = Report("the dataset")
    for name, split in splits.items():
        for image_id in split.image_ids:
            if image_id in split_by_id:
                other = split_by_id[image_id]
                splits_of_id = f"twice in {name}" if other == name else f"{other} and {name}"
                report.add("duplicate image ids", f"{image_id} ({splits_of_id})")
            split_by_id[image_id] = name
    report.finish("stop", "Each image must belong to exactly one split; remove it from the others.")
    return dict(splits)


class Report:
    """Counts problems by kind and collects the first ones, then raises or logs them."""

    def __init__(self, subject: str):
        self.subject = subject
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Records one problem."""
        self._counts[kind] += 1
        first = self._first.setdefault(kind, [])
        if len(first) < MAX_LISTED:
            first.append(escape_message(name[:_MAX_CHARACTERS]))

    def extend(self, kind: str, names: Iterable[str]) -> None:
        """Records several problems of one kind."""
        for name in names:
            self.add(kind, name)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        lines = [f"Problems in {escape_message(self.subject)}:"]
        for kind, count in self._counts.items():
            lines.append(f"  {kind}: {count}")
            lines += [f"    {name}" for name in self._first[kind]]
            if count > MAX_LISTED:
                lines.append(f"    ... and {count - MAX_LISTED} more")
        return "\n".join(lines)

    def finish(self, on_error: str, remedy: str) -> None:
        """Raises an error ("stop") or logs a warning ("skip") if there are any problems.

        Args:
            on_error: "stop" or "skip".
            remedy: last line of the error message.

        Raises:
            DataError: there are problems and `on_error` is "stop".
            ConfigError: `on_error` is neither "stop" nor "skip".
        """
        if on_error not in ("stop", "skip"):
            raise ConfigError(f"config.data.on_error must be 'stop' or 'skip', got {on_error!r}")
        if not self:
            return
        if on_error == "stop":
            raise DataError(f"{self}\n{remedy}")
        log.warning("%s\nContinuing without them because config.data.on_error='skip'.", self)

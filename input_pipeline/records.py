"""Captioned images before anything is decoded: one record an image, splits of records, reports on what is wrong."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from input_pipeline.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
SHOWN = 10  # problems of a kind that a report names; the rest are counted

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image, still encoded, with all its captions.

    Attributes:
        image: where the encoded image is: a file, or a function that returns its bytes.
        captions: at least one where the split is trained or judged on.
        image_id: unique over all splits.
        name: what messages call the image; the path, or else the id.
    """

    image: Path | Callable[[], bytes]
    captions: tuple[str, ...]
    image_id: str | int
    name: str = ""

    def __post_init__(self):
        if not self.name:
            is_file = isinstance(self.image, Path)
            object.__setattr__(self, "name", str(self.image) if is_file else f"image {self.image_id}")

    def source(self) -> Path | bytes:
        """Returns what `images.decode_image` takes: the path, or the encoded bytes."""
        return self.image() if callable(self.image) else self.image


class Split(Sequence[Record]):
    """The records of one split, in a fixed order."""

    def __init__(self, name: str, records: Sequence[Record]):
        self.name = name
        self.records = records

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
        """All captions, image after image."""
        return [caption for record in self.records for caption in record.captions]

    @property
    def references(self) -> dict[str | int, list[str]]:
        """Image id -> its captions: what `caption_jax.metrics.score` takes."""
        return {record.image_id: list(record.captions) for record in self.records}

    def take(self, count: int) -> Split:
        """Returns the first `count` images; all of them for 0."""
        return Split(self.name, self.records[:count]) if 0 < count < len(self) else self


def check_splits(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Returns the splits if every image id occurs once in all of them.

    Raises:
        DataError: an id occurs twice, with the first ten and their splits.
    """
    home: dict[str | int, str] = {}
    report = Report("the opened data set")
    for name, split in splits.items():
        for image_id in split.image_ids:
            if image_id in home:
                where = f"twice in {name}" if home[image_id] == name else f"{home[image_id]} and {name}"
                report.add("image id in more than one place", f"{image_id} ({where})")
            home[image_id] = name
    report.finish("stop", "Each image belongs to one split only: remove it from the others.")
    return dict(splits)


class Report:
    """Collects problems by kind, then stops or goes on."""

    def __init__(self, subject: str):
        self.subject = subject
        self.problems: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Notes one problem."""
        self.problems.setdefault(kind, []).append(name)

    def extend(self, kind: str, names: Iterable[str]) -> None:
        """Notes several problems of one kind."""
        for name in names:
            self.add(kind, name)

    def __bool__(self) -> bool:
        return bool(self.problems)

    def __str__(self) -> str:
        lines = [f"Problems in {self.subject}:"]
        for kind, names in self.problems.items():
            lines.append(f"  {kind}: {len(names)}")
            lines += [f"    {name}" for name in names[:SHOWN]]
            if len(names) > SHOWN:
                lines.append(f"    ... and {len(names) - SHOWN} more")
        return "\n".join(lines)

    def finish(self, on_error: str, remedy: str) -> None:
        """Does nothing without problems; else raises for "stop" and logs a warning for "skip".

        Raises:
            DataError: there are problems and `on_error` is "stop".
            ConfigError: `on_error` is something else again.
        """
        if on_error not in ("stop", "skip"):
            raise ConfigError(f"config.data.on_error is {on_error!r}; choose 'stop' or 'skip'")
        if not self.problems:
            return
        if on_error == "stop":
            raise DataError(f"{self}\n{remedy}")
        log.warning("%s\nGoing on without them, as config.data.on_error='skip' asks.", self)

"""Names of the columns of CSV files and of the fields of JSON objects."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

from input_pipeline.annotations.caption_file import CaptionFile, list_names
from input_pipeline.terminal_text import escape_message

log = logging.getLogger(__name__)

# Names in order of precedence; docs/data.md lists them. Case, blanks, hyphens and underscores are ignored.
IMAGE_FIELDS = (
    *("image", "image_name", "image_path", "image_file", "image_filename", "image_file_name"),
    *("file_name", "file_path", "file", "path", "img", "img_name", "img_path", "img_file", "image_id"),
)
CAPTION_FIELDS = (
    *("caption", "captions", "caption_text", "text", "texts", "sentence", "sentences", "comment", "comments"),
    *("description", "descriptions", "title", "titles", "alt_text", "alt", "raw"),
)
TOKEN_FIELDS = ("tokens", "words")  # a caption as a list of words, used if no other field has captions


def normalize(name: str) -> str:
    """Returns the letters and digits of a name in lower case: "Image Name" and "image_name" are the same."""
    return "".join(filter(str.isalnum, name.casefold())) or name.strip()


@dataclasses.dataclass(frozen=True)
class Fields:
    """Positions of the known fields in a list of names; None for a field that does not exist.

    Attributes:
        image: file name of the image.
        caption: the captions.
        split: name of the split.
        has_words: whether the captions are lists of words for certain, because of the name of the field.
        alternatives: other names that could be the caption.
    """

    image: int | None
    caption: int | None
    split: int | None
    has_words: bool = False
    alternatives: tuple[str, ...] = ()

    @property
    def are_complete(self) -> bool:
        """Whether there are images and captions."""
        return self.image is not None and self.caption is not None


def resolve_fields(names: Sequence[Any], file: CaptionFile) -> Fields:
    """Finds the image, the captions and the split among names, by the settings of a file or by the known names."""
    normalized = [normalize(str(name)) for name in names]
    tokens = _find_all(normalized, TOKEN_FIELDS)
    captions = _find_all(normalized, (file.caption_column,) if file.caption_column else CAPTION_FIELDS) or (
        [] if file.caption_column else tokens
    )
    images = _find_all(normalized, (file.image_column,) if file.image_column else IMAGE_FIELDS)
    splits = _find_all(normalized, (file.split_field or "split",))
    caption = captions[0] if captions else None
    return Fields(
        image=images[0] if images else None,
        caption=caption,
        split=splits[0] if splits else None,
        has_words=caption is not None and caption in tokens,
        alternatives=tuple(str(names[position]).strip() for position in captions[1:]),
    )


def _find_all(normalized: list[str], aliases: Sequence[str]) -> list[int]:
    """Returns the positions of the aliases that exist, in the order of the aliases."""
    wanted = map(_normalize_alias, aliases)
    return [normalized.index(alias) for alias in wanted if alias in normalized]


_normalize_alias = functools.cache(normalize)


def describe_unknown_fields(names: Sequence[Any], fields: Fields, file: CaptionFile, kind: str = "column") -> str:
    """Returns which names were found instead of known ones, and the config keys that name the columns."""
    missing = []
    if fields.image is None:
        missing.append(f"named {file.image_column!r}" if file.image_column else "known to hold image names")
    if fields.caption is None:
        missing.append(f"named {file.caption_column!r}" if file.caption_column else "known to hold captions")
    is_known = fields.image is not None or fields.caption is not None
    shown = ", ".join(repr(str(name).strip()) for name in names)[:300] if is_known else list_names(names)
    found = f"; the {kind}s are {shown}" if shown else ""
    keys = "config.data.image_column and config.data.caption_column"
    remedy = (
        f"Name them with {keys}" if file.require_names else "Rename them to image and caption"
    )  # metrics: no config
    return f"no {kind} {' and none '.join(missing)}{found}. {remedy}"


def log_choice(names: Sequence[Any], fields: Fields, file: CaptionFile) -> None:
    """Logs the caption column if other columns could have been meant."""
    if fields.alternatives:
        log.info(
            "%s: captions are read from %r, not from %s; to change this, set config.data.caption_column.",
            escape_message(file.path),
            str(names[fields.caption]).strip(),
            " or ".join(map(repr, fields.alternatives)),
        )

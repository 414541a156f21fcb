"""`config.limits`: limits on input files, which keep damaged and hostile files from exhausting memory or time.

They are checked before the content of a file is processed. Files that exceed a limit are reported like damaged files,
with the key of the limit. The defaults are far above those of photographs and caption datasets.
"""

from __future__ import annotations

import dataclasses

from input_pipeline.spec_checks import at_least, check_fields

_MB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on input files, in all modes. A run can be resumed with other limits."""

    image_file_bytes: int = 256 * _MB  # size of an image file, in bytes
    image_pixels: int = 250_000_000  # width x height; telephones have up to 200 megapixels
    image_side: int = 65_535  # width and height, in pixels; the maximum of JPEG
    image_aspect_ratio: float = 1000.0  # longer side divided by the shorter side
    # Memory for the images that a process and its decoding processes decode at the same time, in bytes, as estimated
    # from their headers. Images wait for each other; an image that needs more on its own is rejected.
    decoding_bytes: int = 1536 * _MB
    caption_file_bytes: int = 1024 * _MB  # size of a file of captions, results or split names, in bytes
    caption_file_records: int = 10_000_000  # rows, lines or JSON objects with captions in a file
    caption_file_problems: int = 100_000  # records of a file that cannot be used, after which reading it stops
    json_values: int = 20_000_000  # values in a JSON document or in a line of JSON lines
    caption_characters: int = 10_000  # length of a caption
    captions_per_image: int = 1000
    name_characters: int = 1024  # length of the name or id of an image

    def __post_init__(self):
        names = [field.name for field in dataclasses.fields(self)]
        check_fields(self, "config.limits", **dict.fromkeys(names, at_least(1, largest=2**62)))

    def image_key(self) -> dict[str, float]:
        """Returns the limits on images that differ from the defaults, for the keys of caches of decoded images."""
        values = dataclasses.asdict(self)
        return {
            field.name: values[field.name]
            for field in dataclasses.fields(self)
            if field.name.startswith(("image_", "decoding_")) and values[field.name] != field.default
        }


DEFAULT_LIMITS = Limits()

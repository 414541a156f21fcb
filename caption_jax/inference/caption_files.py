"""The command line's `caption` mode: files in, lines out."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence

from caption_jax.files import json_line, pass_any_file_name
from caption_jax.inference.captioner import Captioner
from input_pipeline.images import IMAGE_SUFFIXES, ImageError


def caption_files(captioner: Captioner, arguments: Sequence[str], form: str, context: Sequence[str] = ()) -> int:
    """Captions paths, globs and folders; prints a line per image as soon as its batch is done.

    Files that cannot be read are reported on the error stream and the rest go on.

    Args:
        captioner: the model.
        arguments: paths, glob patterns or folders (searched to the bottom for image files).
        form: "text" for `path<TAB>caption`, "jsonl" for one JSON object per line.
        context: texts that go with every image, for a model that takes them.

    Returns:
        Exit status: 0 when every image got a caption, 1 when some did not, 2 when no argument names an image.
    """
    paths = list(find_images(arguments))
    if not paths:
        kinds = " ".join(IMAGE_SUFFIXES)
        print(f"no images: {list(arguments)} names no file, and no folder that holds {kinds}", file=sys.stderr)
        return 2
    pass_any_file_name()
    failures = 0
    for path, result in zip(paths, captioner.caption_each(paths, [context] * len(paths)), strict=True):
        if isinstance(result, ImageError):
            failures += 1
            print(f"error: {result}", file=sys.stderr, flush=True)
            if form == "jsonl":
                print(json_line({"path": path, "error": str(result)}), flush=True)
        elif form == "jsonl":
            line = {"path": path, "caption": result.text, "log_prob": result.log_prob, "tokens": result.tokens}
            print(json_line(line), flush=True)
        else:
            print(f"{path}\t{result.text}", flush=True)
    if failures:
        print(f"{failures} of {len(paths)} images have no caption: see the errors above", file=sys.stderr)
    return 1 if failures else 0


def find_images(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the files that the arguments name; a path that does not exist is yielded as it is, to be reported."""
    for argument in arguments:
        if os.path.isdir(argument):
            for folder, subfolders, files in os.walk(argument):
                subfolders.sort()
                yield from (os.path.join(folder, f) for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES))
        elif not os.path.exists(argument) and glob.has_magic(argument):
            yield from (path for path in sorted(glob.glob(argument, recursive=True)) if os.path.isfile(path))
        else:
            yield argument

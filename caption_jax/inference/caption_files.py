"""The `caption` mode of the command line, which captions image files and prints one line per image."""

from __future__ import annotations

import dataclasses
import functools
import glob
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from caption_jax.files import allow_any_output, json_line
from caption_jax.inference.captioner import Caption, Captioner
from caption_jax.runtime.divided_work import assist, divide, is_assistant, share_status
from caption_jax.telemetry.progress import SILENT, Display
from input_pipeline.image_formats import FORMATS, find_folder_images
from input_pipeline.images import ImageError
from input_pipeline.safe_open import DataRoot
from input_pipeline.terminal_text import escape, escape_message

log = logging.getLogger(__name__)


def caption_files(
    captioner: Captioner,
    arguments: Sequence[str],
    output_format: str,
    context: Sequence[str] = (),
    display: Display = SILENT,
) -> int:
    """Captions image files; prints one line per image as soon as its batch is done.

    Files that cannot be read are reported on stderr and skipped. If there are several processes, they divide the images
    among them, and process 0 prints all lines in order.

    Args:
        captioner: the model.
        arguments: see `find_images`.
        output_format: "text" for `path<TAB>caption`, in which control characters are escapes
            (`input_pipeline.terminal_text.escape`), "jsonl" for one JSON object per line.
        context: context texts passed with every image, for models trained with context.
        display: shows the progress.

    Returns:
        Exit status: 0 if every image was captioned, 1 if some could not be read, 2 if no files match.
    """
    if is_assistant():
        assist(functools.partial(_caption_part, captioner, context))
        return share_status()
    paths = list(find_images(arguments))
    results = _caption_all(captioner, paths, context)
    if not paths:
        next(results, None)  # tells the other processes that there is no work
        print(f"error: {describe_no_match(arguments)}", file=sys.stderr)
        return share_status(2)
    allow_any_output()
    failures = 0
    with display.phase("captioning", len(paths), "images") as phase:
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, ImageError):
                failures += 1
                print(f"error: {escape_message(result)}", file=sys.stderr, flush=True)
                if output_format == "jsonl":
                    print(json_line({"path": path, "error": str(result)}), flush=True)
            elif output_format == "jsonl":
                line = {"path": path, "caption": result.text, "log_prob": result.log_prob, "tokens": result.tokens}
                print(json_line(line), flush=True)
            else:
                print(f"{escape(path)}\t{escape(result.text)}", flush=True)
            phase.advance()
    if failures > 1:
        print(f"{failures} of {len(paths)} images have no caption; see the errors above", file=sys.stderr)
    return share_status(1 if failures else 0)


def _caption_all(captioner: Captioner, paths: list[str], context: Sequence[str]) -> Iterator[Caption | ImageError]:
    """Yields the caption of each image, or an error; all processes of the run caption a part of the images."""
    if jax.process_count() == 1:
        yield from captioner.caption_each(paths, [context] * len(paths))
        return
    size = captioner.batch_size
    parts = [paths[start : start + size] for start in range(0, len(paths), size)]
    for captions in divide(parts, functools.partial(_caption_part, captioner, context)):
        for caption in captions:
            if "reason" in caption:
                yield ImageError(caption["name"], caption["reason"])
            else:
                yield Caption(caption["text"], caption["log_prob"], tuple(caption["tokens"]))


def _caption_part(captioner: Captioner, context: Sequence[str], number: int, paths: list[str]) -> list[dict[str, Any]]:
    """Returns captions and errors in JSON."""
    captions = captioner.caption_each(paths, [context] * len(paths), is_first=number == 0)
    return [
        {"name": caption.name, "reason": caption.reason}
        if isinstance(caption, ImageError)
        else dataclasses.asdict(caption)
        for caption in captions
    ]


def find_images(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the files that match the arguments; nonexistent paths are yielded unchanged, to be reported later.

    Args:
        arguments: paths, glob patterns, or folders, which are searched recursively for images; see
            `input_pipeline.image_formats.find_folder_images`. One line of the log counts the links that lead out of a
            folder.
    """
    for argument in arguments:
        if os.path.isdir(argument):
            root = DataRoot(argument)
            yield from find_folder_images(argument, lambda path, root=root: root.admits(path, path))
            if root.has_outside_files:
                log.info("%s", root)
        elif not os.path.exists(argument) and glob.has_magic(argument):
            yield from (path for path in sorted(glob.glob(argument, recursive=True)) if os.path.isfile(path))
        else:
            yield argument


def describe_no_match(arguments: Sequence[str]) -> str:
    """Returns the error message for arguments of `find_images` without any match."""
    return f"no images match {list(arguments)}; expected files, patterns, or folders with {FORMATS} files"

"""Caption files that do harm to a naive reader. Each is written by a function of its path."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

MB = 2**20
GOOD = '{"image": "b.png", "caption": "ok"}'
_ROW = "b.png,ok\n"


def write(content: str | bytes) -> Callable[[Path], None]:
    """Returns a function that writes content to a path."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda path: Path(path).write_bytes(data) and None


def _write_sparse(start: bytes, size: int) -> Callable[[Path], None]:
    def write_file(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return write_file


def _nest(depth: int) -> str:
    return "[" * depth + "]" * depth


# Files that are rejected as a whole, and a part of the message.
REJECTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe.csv": (os.mkfifo, "is a named pipe, not a regular file"),
    "zero.csv": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a regular file"),
    "sparse.csv": (_write_sparse(b"image,caption\n", 4 << 30), "has 4,294,967,296 bytes, more than the limit of"),
    "holes.csv": (_write_sparse(b"image,caption\n", 200 * MB), "is not a text file: it contains null bytes"),
    "passwords.csv": (lambda path: path.symlink_to("/etc/passwd"), "neither the header of a CSV file nor JSON"),
    "deep.json": (write(_nest(200_000)), "nested too deeply"),
    "digits.json": (write(f'{{"images": [{{"id": {"1" * 10_000}}}], "annotations": []}}'), "more than 4,300 digits"),
    "lists.json": (write("[" + "[]," * (8 * MB) + "[]]"), ""),
    "more_lists.json": (write("[" + "[]," * (21 * MB) + "[]]"), "more than 20,000,000 values"),
    "header.csv": (write("image," * (4 * MB) + f"\n{_ROW}"), "its first line has 25,165,825 characters"),
    "bad_rows.csv": (write("image,caption\n" + "x\n" * (4 * MB)), "more than 100,000 entries cannot be used"),
    "quotes.csv": (write("image,caption\n" + 'a.png,"x\n' * MB), "more than 100,000 entries cannot be used"),
    "bad_lines.jsonl": (write(f"{GOOD}\n" + "x\n" * MB), "more than 100,000 entries cannot be used"),
    "twice.json": (write('{"b.png": ["ok"], "b.png": ["lost"]}'), "the key 'b.png' occurs twice"),
    "workbook.csv": (write(b"PK\x03\x04" + bytes(100)), "is not a text file but an Excel workbook"),
    "latin.csv": (write("image,caption\nb.png,caf\xe9\n".encode("latin-1")), "is not UTF-8 text (byte 23), see line 2"),
    "empty.csv": (write(""), "is empty"),
}


def _after_bad_record(record: str) -> Callable[[Path], None]:
    return write(f"{record}\n{GOOD}\n")


# Files with one record that is rejected, and a part of the message. The other record is read.
PARTLY_REJECTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "surrogate.jsonl": (
        _after_bad_record(r'{"image": "a.png", "caption": "x \ud800"}'),
        "half of a character (U+D800)",
    ),
    "null.jsonl": (_after_bad_record(r'{"image": "a.png", "caption": "x\u0000"}'), "the caption contains a null"),
    "null_name.jsonl": (_after_bad_record(r'{"image": "a\u0000.png", "caption": "x"}'), "the name contains a null"),
    "digits.jsonl": (
        _after_bad_record('{"image": "a.png", "image_id": ' + "1" * 10_000 + "}"),
        "more than 4,300 digits",
    ),
    "digits.json": (write(json.dumps({"1" * 10_000: "x", "b.png": "ok"})), "a name of 10,000 characters, more than"),
    "nested.jsonl": (_after_bad_record(f'{{"image": "a.png", "caption": {_nest(900)}}}'), "(a list); wanted text"),
    "nested_split.jsonl": (
        _after_bad_record(f'{{"image": "a.png", "caption": "x", "split": {_nest(900)}}}'),
        "(a list); wanted the name of a split",
    ),
    "nan.jsonl": (
        _after_bad_record('{"image": "a.png", "image_id": NaN, "caption": "x"}'),
        "NaN (not a finite number)",
    ),
    "twice.jsonl": (_after_bad_record('{"image": "a.png", "image": "c.png", "caption": "x"}'), "occurs twice"),
    "first_line.jsonl": (_after_bad_record('{"image": "a.png"'), "line 1: not valid JSON"),
    "long.csv": (write("image,caption\na.png," + "x" * (50 * MB) + f"\n{_ROW}"), "a field of more than 131,072"),
    "long.json": (
        write(json.dumps({"a.png": ["x" * (50 * MB)], "b.png": ["ok"]})),
        "a caption of 52,428,800 characters",
    ),
    "long.txt": (write("b.png#0\tok\na.png#0\t" + "x y " * (10 * MB)), "a caption of 41,943,040 characters"),
    "literal.csv": (write("image,caption\na.png,[" + " " * 100_000 + f"x\n{_ROW}"), "a caption of 100,002 characters"),
    "karpathy.json": (
        write(
            json.dumps(
                {
                    "images": [
                        {"filename": name, "imgid": [1] * (name < "b"), "sentences": ["ok"]} for name in ("a", "b")
                    ]
                }
            ).replace('"imgid": []', '"imgid": 1')
        ),
        "imgid is [1] (a list); wanted a number",
    ),
}

"""Runs the Java tokenizer bundled with pycocoevalcap. As a script, updates the golden file of the tests:

python tests/metrics/reference_tokenizer.py
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "ptb_tokens.json"
# As in pycocoevalcap/tokenizer/ptbtokenizer.py.
PUNCTUATIONS = ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-")
PUNCTUATIONS += (".", "?", "!", ",", ":", "-", "--", "...", ";")


def find_jar() -> Path | None:
    """Returns the jar of the installed pycocoevalcap, or None if it or Java is missing."""
    package = find_spec("pycocoevalcap")
    if package is None or shutil.which("java") is None:
        return None
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    return jar if jar.is_file() else None


def run_reference_tokenizer(lines: Sequence[str]) -> list[str]:
    """Tokenizes all lines in a single run of pycocoevalcap's PTBTokenizer."""
    jar = find_jar()
    assert jar is not None, "requires Java and pycocoevalcap"
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        # A last line without a newline is tokenized differently, a bug that affects pycocoevalcap's last caption.
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        output = subprocess.run([*command, file.name], capture_output=True, check=True).stdout.decode()
    rows = output.split("\n")
    assert len(rows) >= len(lines), "the tokenizer dropped a line"
    return [
        " ".join(word for word in row.rstrip().split(" ") if word not in PUNCTUATIONS) for row in rows[: len(lines)]
    ]


def read_captions(shared_data: Path) -> list[str]:
    """Returns all captions of the development data."""
    with open(shared_data / "flickr8k" / "captions.csv", encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    content = json.loads((shared_data / "coco_mini" / "captions.json").read_text(encoding="utf-8"))
    return [caption.replace("\n", " ") for caption in captions + [row["caption"] for row in content["annotations"]]]


def write_golden(lines: Sequence[str]) -> None:
    """Writes (line, tokens) pairs from a single run over all lines, because tokens depend on the next line."""
    pairs = [list(pair) for pair in zip(lines, run_reference_tokenizer(lines), strict=True)]
    rows = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
    GOLDEN.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write_golden([line for line, _ in json.loads(GOLDEN.read_text(encoding="utf-8"))])

"""Runs the tokenizer that pycocoevalcap carries (Java), and brings the golden file of the ordinary tests up to date.

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
# The list of pycocoevalcap/tokenizer/ptbtokenizer.py.
PUNCTUATIONS = ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-")
PUNCTUATIONS += (".", "?", "!", ",", ":", "-", "--", "...", ";")


def find_jar() -> Path | None:
    """The jar in the installed pycocoevalcap, if Java is there to run it."""
    package = find_spec("pycocoevalcap")
    if package is None or shutil.which("java") is None:
        return None
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    return jar if jar.is_file() else None


def reference_tokens(lines: Sequence[str]) -> list[str]:
    """What pycocoevalcap's PTBTokenizer makes of the lines, in one run."""
    jar = find_jar()
    assert jar is not None, "needs Java and pycocoevalcap"
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        # A last line without an end is read a little differently; pycocoevalcap has that flaw for its last caption.
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        output = subprocess.run([*command, file.name], capture_output=True, check=True).stdout.decode()
    found = output.split("\n")
    assert len(found) >= len(lines), "the tokenizer lost a line"
    return [
        " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in found[: len(lines)]
    ]


def read_captions(shared_data: Path) -> list[str]:
    """All captions of the development data."""
    with open(shared_data / "flickr8k" / "captions.csv", encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    content = json.loads((shared_data / "coco_mini" / "captions.json").read_text(encoding="utf-8"))
    return [caption.replace("\n", " ") for caption in captions + [row["caption"] for row in content["annotations"]]]


def write_golden(lines: Sequence[str]) -> None:
    """Writes pairs of a line and its tokens: one run of the reference over all lines in their order."""
    pairs = [list(pair) for pair in zip(lines, reference_tokens(lines), strict=True)]
    rows = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
    GOLDEN.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write_golden([line for line, _ in json.loads(GOLDEN.read_text(encoding="utf-8"))])

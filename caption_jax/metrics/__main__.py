"""Scores a results file or compares two of them; see `caption-jax score --help`.

`python -m caption_jax.metrics` takes the same flags, but the results before the references.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

from caption_jax.metrics import java_metrics
from caption_jax.metrics.cider import DocumentFrequencies
from caption_jax.metrics.diversity import diversity
from caption_jax.metrics.image_matching import key_references, match_images
from caption_jax.metrics.results import (
    SUBSETS,
    ImageSetError,
    describe_subset,
    read_annotations,
    read_references,
    read_results,
    select_images,
)
from caption_jax.metrics.scores import explain_zero_cider, protocol, score_images
from caption_jax.metrics.significance import Comparison, Interval, compare, intervals
from caption_jax.metrics.tokenization import TOKENIZERS, TokenizationWarning
from caption_jax.telemetry.progress import Display
from caption_jax.telemetry.progress_displays import open_display
from input_pipeline.errors import UserError
from input_pipeline.files import write_atomically
from input_pipeline.terminal_text import escape, escape_message

_NEWLINE = "\n  "
_PROGRAM = "python -m caption_jax.metrics"
_EPILOG = """
Results and annotations may be in any format supported for training (docs/data.md): COCO JSON,
Karpathy's dataset_*.json, JSON lines, {"a.jpg": "a dog"}, CSV or token.txt. Results are usually
COCO results JSON, [{"image_id": 1, "caption": "a dog"}, ...], or the output of `caption
--format=jsonl`. Images are matched by id, by file name, or else by a part of the file name that is
unique.

examples:
  {examples}
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an invalid command line on one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {escape_message(message)} ({self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str] | None = None, program: str = _PROGRAM, *, references_first: bool = False) -> int:
    """Prints scores with intervals, and a comparison if two results files are passed. Returns the exit status.

    Args:
        arguments: arguments of the command; those of this process if None.
        program: name of the command in messages.
        references_first: whether the references are the first argument and the results the second.
    """
    options = _make_parser(program, references_first).parse_args(arguments)
    try:
        with warnings.catch_warnings(record=True) as caught, open_display() as display:
            warnings.simplefilter("always", TokenizationWarning)
            report = _make_report(options, display)
    except (UserError, OSError) as error:
        print(f"error: {escape_message(error, _NEWLINE)}", file=sys.stderr)
        return 1
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"warning: {escape_message(message)}", file=sys.stderr)
    print(_format_report(report))
    if options.json:
        try:
            _write_report(Path(options.json), json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            print(f"error: {escape_message(error, _NEWLINE)}", file=sys.stderr)
            return 1
    return 0


def _write_report(path: Path, text: str) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):  # such as /dev/stdout
        path.write_text(text, encoding="utf-8")
    else:
        write_atomically(path, text)


def _make_parser(program: str, references_first: bool) -> argparse.ArgumentParser:
    files = {"results": "results file to score", "annotations": "reference captions"}
    names = sorted(files, reverse=not references_first)
    examples = (
        ({"results": "captions_val.json", "annotations": "annotations/captions_val2014.json"}, ""),
        ({"results": "ours.json", "annotations": "dataset_coco.json"}, " baseline.json --split=test"),
        ({"results": "ours.json", "annotations": "captions.csv"}, " baseline.json --json=comparison.json"),
    )
    lines = (f"{program} {' '.join(paths[name] for name in names)}{others}" for paths, others in examples)
    parser = _Parser(
        prog=program,
        usage=f"{program} {' '.join(names)} [other_results] [options]",
        description="Scores captions like COCO's tools, without Java. Two results files are compared image by image.",
        epilog=_EPILOG.replace("{examples}", "\n  ".join(lines)),
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, width=100, max_help_position=27),
    )
    for name in names:
        parser.add_argument(name, help=files[name])
    parser.add_argument("other_results", nargs="?", help="second file to compare; differences are other - results")
    parser.add_argument("--split", default="", help="split of the annotations to use, or a file of image names")
    parser.add_argument(
        "--subset",
        choices=SUBSETS,
        default="all",
        help='"all" requires a result for each image; "common" scores the images that have one (default: %(default)s)',
    )
    parser.add_argument(
        "--tokenizer",
        choices=list(TOKENIZERS),
        default="ptb",
        help="ptb, as in COCO's tools; characters, for languages without spaces between words (default: %(default)s)",
    )
    parser.add_argument("--frequencies", help="saved CIDEr-D document frequencies (default: from the annotations)")
    parser.add_argument("--training", help="training annotations, used to compute the fraction of novel captions")
    parser.add_argument(
        "--samples", type=int, default=1000, help="number of bootstrap and randomization samples (default: %(default)s)"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="confidence level of the intervals (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed for resampling (default: %(default)s)")
    parser.add_argument("--no-java", action="store_true", help="skip METEOR and SPICE even if they are available")
    parser.add_argument("--json", help="write the full report, including per-image scores, to this file")
    return parser


def _make_report(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    paths = [path for path in (options.results, options.other_results) if path]
    with display.phase("reading the captions"):
        all_references, all_results, notes = _read_files(options, paths)
    image_ids, scored_images = _select_images(options, paths, all_references, all_results)
    references = {image_id: all_references[image_id] for image_id in image_ids}
    results = [{image_id: captions[image_id] for image_id in image_ids} for captions in all_results]
    frequencies = DocumentFrequencies.load(options.frequencies) if options.frequencies else None
    training_captions = None
    if options.training:
        annotations = read_annotations(options.training)
        training_captions = [caption for captions in annotations.values() for caption in captions]
    tokenizer = options.tokenizer
    all_scores = []
    for path, captions in zip(paths, results, strict=True):
        with display.phase(f"scoring {path}"):
            all_scores.append(score_images(references, captions, frequencies, tokenizer=tokenizer))
    for path, scores in zip(paths, all_scores, strict=True):
        if explanation := explain_zero_cider(scores, frequencies):
            notes.append(f"{path}: {explanation}")
    sampling = {"samples": options.samples, "confidence": options.confidence, "seed": options.seed}
    report: dict[str, Any] = {
        "images": len(references),
        "protocol": protocol(frequencies, tokenizer=tokenizer, scored_images=scored_images),
        "notes": notes,
        "sampling": sampling,
        "results": [],
    }
    for path, captions, scores in zip(paths, results, all_scores, strict=True):
        java, absent = {}, {}
        if not options.no_java:
            with display.phase("METEOR and SPICE"):
                java, absent = java_metrics.java_scores(references, captions, tokenizer=tokenizer)
        with display.phase("computing confidence intervals"):
            score_intervals = intervals(scores, **sampling)
        report["results"].append(
            {
                "file": path,
                "metrics": {name: vars(interval) for name, interval in score_intervals.items()},
                "java_metrics": java,
                "absent": absent,
                "diversity": diversity(captions, training_captions, tokenizer=tokenizer),
                "images": _make_image_rows(scores.image_ids, captions, scores.values),
            }
        )
    if len(all_scores) == 2:
        with display.phase("comparing the two"):
            report["comparison"] = {name: vars(result) for name, result in compare(*all_scores, **sampling).items()}
    return report


def _read_files(
    options: argparse.Namespace, paths: list[str]
) -> tuple[dict[Hashable, list[str]], list[dict[Hashable, str]], list[str]]:
    """Returns references and results with the same image ids, and a note on each file whose ids had to be matched."""
    references = read_references(options.annotations, split=options.split)
    results = [read_results(path) for path in paths]
    matches = [match_images(references, captions, path) for path, captions in zip(paths, results, strict=True)]
    by_id = matches[0].by_id
    notes = [f"{path}: {match.description}" for path, match in zip(paths, matches, strict=True) if match.description]
    renamed = [match.rename(captions, by_id=by_id) for match, captions in zip(matches, results, strict=True)]
    return key_references(references, by_id=by_id), renamed, notes


def _select_images(
    options: argparse.Namespace, paths: list[str], references: dict[Hashable, Any], results: list[dict[Hashable, str]]
) -> tuple[list[Hashable], str]:
    """Returns the ids of the images to score, and a description of the subset for the protocol."""
    for path, captions in zip(paths, results, strict=True):
        try:
            select_images(references, captions, subset=options.subset)
        except ImageSetError as error:
            raise ImageSetError(f"{path} does not match {options.annotations}: {error}") from error
    scored_images = describe_subset(references, *results) if options.subset == "common" else ""
    return select_images(references, *results, subset=options.subset), scored_images


def _make_image_rows(image_ids: tuple[Hashable, ...], captions: dict, values: dict) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image_id,
            "caption": captions[image_id],
            **{name: float(per_image[i]) for name, per_image in values.items()},
        }
        for i, image_id in enumerate(image_ids)
    ]


def _format_report(report: dict[str, Any]) -> str:
    sampling = report["sampling"]
    percent = f"{100 * sampling['confidence']:g} %"
    images = "1 image" if report["images"] == 1 else f"{report['images']} images"
    lines = [f"{images}; {percent} intervals from {sampling['samples']} bootstrap samples"]
    lines += [f"{name}: {value}" for name, value in report["protocol"].items()]
    lines += [f"note: {escape_message(note)}" for note in report["notes"]]
    for result in report["results"]:
        lines += ["", escape(result["file"])]
        metrics = {name: Interval(**fields) for name, fields in result["metrics"].items()}
        lines += [f"  {name:<21}{i.value:9.4f}   [{i.low:.4f}, {i.high:.4f}]" for name, i in metrics.items()]
        lines += [
            f"  {name:<21}{value:9.4f}" for name, value in {**result["java_metrics"], **result["diversity"]}.items()
        ]
        lines += [f"  {name:<21}   absent: {reason}" for name, reason in result["absent"].items()]
    if "comparison" in report:
        first, second = (escape(result["file"]) for result in report["results"])
        lines += ["", f"{second} - {first}, paired"]
        for name, fields in report["comparison"].items():
            comparison = Comparison(**fields)
            interval = f"[{comparison.low:+.4f}, {comparison.high:+.4f}]"
            lines.append(f"  {name:<21}{comparison.difference:+9.4f}   {interval:<20} p = {comparison.p_value:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Scores a results file or compares two of them; see `python -m caption_jax.metrics --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Hashable
from typing import Any

from caption_jax.metrics import java_metrics
from caption_jax.metrics.cider import DocumentFrequencies
from caption_jax.metrics.diversity import diversity
from caption_jax.metrics.results import ImageSetError, check_image_set, read_annotations, read_results
from caption_jax.metrics.scores import protocol, score_images
from caption_jax.metrics.significance import Comparison, Interval, compare, intervals
from input_pipeline.errors import UserError

_EXAMPLE = """
examples:
  python -m caption_jax.metrics captions_val.json annotations/captions_val2014.json
  python -m caption_jax.metrics ours.json dataset_coco.json baseline.json --split=test --json=comparison.json
  python -m caption_jax.metrics ours.json captions.csv baseline.json --split=dev_images.txt

Results are COCO results JSON: [{"image_id": 1, "caption": "a dog"}, ...]. Annotations may be in any format supported
for training: COCO caption JSON, Karpathy's dataset_*.json, JSON lines, CSV with the columns image and caption, or
token.txt. Results may be in any of these formats too. If the results identify images by file name rather than by id,
the annotations are matched by file name.
"""


def main(arguments: list[str] | None = None) -> int:
    """Prints scores with intervals, plus a comparison if two results files are passed; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        report = _report(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_as_text(report))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
            file.write("\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m caption_jax.metrics",
        description="Scores captions like COCO's tools, without Java. Two results files are compared image by image.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", help="results to score")
    parser.add_argument("annotations", help="reference captions")
    parser.add_argument("other_results", nargs="?", help="second results to compare; differences are other - results")
    parser.add_argument("--split", default="", help="split of the annotations to use, or a file of image names")
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


def _report(options: argparse.Namespace) -> dict[str, Any]:
    paths = [path for path in (options.results, options.other_results) if path]
    results = [read_results(path) for path in paths]
    by_name = bool(results[0]) and isinstance(next(iter(results[0])), str)
    references = read_annotations(options.annotations, split=options.split, ids="file_name" if by_name else "id")
    for path, captions in zip(paths, results, strict=True):
        try:
            check_image_set(references, captions)
        except ImageSetError as error:
            raise ImageSetError(f"{path} does not match {options.annotations}: {error}") from error
    frequencies = DocumentFrequencies.load(options.frequencies) if options.frequencies else None
    training = None
    if options.training:
        training = [caption for captions in read_annotations(options.training).values() for caption in captions]
    scored = [score_images(references, captions, frequencies) for captions in results]
    sampling = {"samples": options.samples, "confidence": options.confidence, "seed": options.seed}
    report: dict[str, Any] = {
        "images": len(references),
        "protocol": protocol(frequencies),
        "sampling": sampling,
        "results": [],
    }
    for path, captions, scores in zip(paths, results, scored, strict=True):
        java, absent = ({}, {}) if options.no_java else java_metrics.java_scores(references, captions)
        report["results"].append(
            {
                "file": path,
                "metrics": {name: vars(interval) for name, interval in intervals(scores, **sampling).items()},
                "java_metrics": java,
                "absent": absent,
                "diversity": diversity(captions, training),
                "images": _per_image(scores.image_ids, captions, scores.values),
            }
        )
    if len(scored) == 2:
        report["comparison"] = {name: vars(result) for name, result in compare(*scored, **sampling).items()}
    return report


def _per_image(image_ids: tuple[Hashable, ...], captions: dict, values: dict) -> list[dict[str, Any]]:
    return [
        {"image_id": image_id, "caption": captions[image_id], **{name: float(row[i]) for name, row in values.items()}}
        for i, image_id in enumerate(image_ids)
    ]


def _as_text(report: dict[str, Any]) -> str:
    sampling = report["sampling"]
    percent = f"{100 * sampling['confidence']:g} %"
    lines = [f"{report['images']} images; {percent} intervals from {sampling['samples']} bootstrap samples"]
    lines += [f"{name}: {value}" for name, value in report["protocol"].items()]
    for result in report["results"]:
        lines += ["", result["file"]]
        rows = {name: Interval(**interval) for name, interval in result["metrics"].items()}
        lines += [f"  {name:<21}{row.value:9.4f}   [{row.low:.4f}, {row.high:.4f}]" for name, row in rows.items()]
        lines += [
            f"  {name:<21}{value:9.4f}" for name, value in {**result["java_metrics"], **result["diversity"]}.items()
        ]
        lines += [f"  {name:<21}   absent: {reason}" for name, reason in result["absent"].items()]
    if "comparison" in report:
        lines += ["", f"{report['results'][1]['file']} - {report['results'][0]['file']}, paired"]
        for name, row in report["comparison"].items():
            result = Comparison(**row)
            interval = f"[{result.low:+.4f}, {result.high:+.4f}]"
            lines.append(f"  {name:<21}{result.difference:+9.4f}   {interval:<20} p = {result.p_value:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

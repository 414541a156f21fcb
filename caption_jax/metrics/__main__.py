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

_EPILOG = """
examples:
  python -m caption_jax.metrics captions_val.json annotations/captions_val2014.json
  python -m caption_jax.metrics ours.json dataset_coco.json baseline.json --split=test --json=comparison.json
  python -m caption_jax.metrics ours.json captions.csv baseline.json --split=dev_images.txt

Results are COCO results JSON: [{"image_id": 1, "caption": "a dog"}, ...]. Annotations may be in any format supported
for training: COCO caption JSON, Karpathy's dataset_*.json, JSON lines, CSV with the columns image and caption, or
token.txt. Results may use these formats too. If the results identify images by file name instead of id, annotations
are matched by file name.
"""


def main(arguments: list[str] | None = None) -> int:
    """Prints scores with intervals, and a comparison if two results files are passed. Returns the exit status."""
    options = _make_parser().parse_args(arguments)
    try:
        report = _make_report(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_format_report(report))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
            file.write("\n")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m caption_jax.metrics",
        description="Scores captions like COCO's tools, without Java. Two results files are compared image by image.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", help="results file to score")
    parser.add_argument("annotations", help="reference captions")
    parser.add_argument("other_results", nargs="?", help="second file to compare; differences are other - results")
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


def _make_report(options: argparse.Namespace) -> dict[str, Any]:
    paths = [path for path in (options.results, options.other_results) if path]
    results = [read_results(path) for path in paths]
    has_names = bool(results[0]) and isinstance(next(iter(results[0])), str)
    references = read_annotations(options.annotations, split=options.split, ids="file_name" if has_names else "id")
    for path, captions in zip(paths, results, strict=True):
        try:
            check_image_set(references, captions)
        except ImageSetError as error:
            raise ImageSetError(f"{path} does not match {options.annotations}: {error}") from error
    frequencies = DocumentFrequencies.load(options.frequencies) if options.frequencies else None
    training_captions = None
    if options.training:
        annotations = read_annotations(options.training)
        training_captions = [caption for captions in annotations.values() for caption in captions]
    all_scores = [score_images(references, captions, frequencies) for captions in results]
    sampling = {"samples": options.samples, "confidence": options.confidence, "seed": options.seed}
    report: dict[str, Any] = {
        "images": len(references),
        "protocol": protocol(frequencies),
        "sampling": sampling,
        "results": [],
    }
    for path, captions, scores in zip(paths, results, all_scores, strict=True):
        java, absent = ({}, {}) if options.no_java else java_metrics.java_scores(references, captions)
        report["results"].append(
            {
                "file": path,
                "metrics": {name: vars(interval) for name, interval in intervals(scores, **sampling).items()},
                "java_metrics": java,
                "absent": absent,
                "diversity": diversity(captions, training_captions),
                "images": _make_image_rows(scores.image_ids, captions, scores.values),
            }
        )
    if len(all_scores) == 2:
        report["comparison"] = {name: vars(result) for name, result in compare(*all_scores, **sampling).items()}
    return report


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
    lines = [f"{report['images']} images; {percent} intervals from {sampling['samples']} bootstrap samples"]
    lines += [f"{name}: {value}" for name, value in report["protocol"].items()]
    for result in report["results"]:
        lines += ["", result["file"]]
        metrics = {name: Interval(**fields) for name, fields in result["metrics"].items()}
        lines += [f"  {name:<21}{i.value:9.4f}   [{i.low:.4f}, {i.high:.4f}]" for name, i in metrics.items()]
        lines += [
            f"  {name:<21}{value:9.4f}" for name, value in {**result["java_metrics"], **result["diversity"]}.items()
        ]
        lines += [f"  {name:<21}   absent: {reason}" for name, reason in result["absent"].items()]
    if "comparison" in report:
        lines += ["", f"{report['results'][1]['file']} - {report['results'][0]['file']}, paired"]
        for name, fields in report["comparison"].items():
            comparison = Comparison(**fields)
            interval = f"[{comparison.low:+.4f}, {comparison.high:+.4f}]"
            lines.append(f"  {name:<21}{comparison.difference:+9.4f}   {interval:<20} p = {comparison.p_value:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Terminal output of an evaluation."""

from __future__ import annotations

import shutil
import sys
from itertools import islice

from caption_jax.evaluation.report.metric_descriptions import describe_metric, format_as_in_papers
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
from caption_jax.specs.decode_summary import decode_settings
from input_pipeline.terminal_text import escape, escape_message


def print_evaluation(scored_evaluation: ScoredEvaluation, samples: int = 8) -> None:
    """Prints scores with confidence intervals, caption statistics, the protocol, unreadable images and samples.

    Args:
        scored_evaluation: scores, captions and protocol of a split.
        samples: number of captions to print, from the beginning of the split.
    """
    protocol, evaluation = scored_evaluation.protocol, scored_evaluation.evaluation
    inputs = protocol["image_input"] + (f", context {protocol['context']}" if "context" in protocol else "")
    data = f" of {escape(protocol['data'])}" if "data" in protocol else ""
    print(
        f"\n{protocol['split']} split{data}: {protocol['images']} images ({inputs}), step {protocol['step']}, "
        f"{protocol['device']}"
    )
    _print_metrics(scored_evaluation)
    print(f"\n  tokenization: {protocol['tokenization']}; decoding: {decode_settings(protocol['decode'])}")
    if "soup" in protocol:
        print(f"  weights: {escape(protocol['soup'])}")
    if "ensemble_steps" in protocol:
        members = ", ".join(f"{escape(name)} (step {step})" for name, step in protocol["ensemble_steps"].items())
        print(f"  ensemble with {members}")
    print(f"  intervals: {protocol['intervals']}")
    if evaluation.unreadable:
        print(f"\n{len(evaluation.unreadable)} images could not be read and count as empty captions:")
        for image_id, reason in islice(evaluation.unreadable.items(), 10):
            print(f"  {escape(image_id)}: {escape_message(reason)}")
    print()
    for image_id, caption in islice(evaluation.captions.items(), samples):
        print(f"  {escape(image_id)}\t{escape(caption)}")


def _print_metrics(scored_evaluation: ScoredEvaluation) -> None:
    """Prints a table with a line per metric: its value, the value in papers, its interval and its meaning."""
    width = max(map(len, [*scored_evaluation.metrics, *scored_evaluation.absent]))
    print(f"  {'':<{width}}     value  in papers  interval")
    for name, value in scored_evaluation.metrics.items():
        interval = scored_evaluation.intervals.get(name)
        bounds = f"[{interval.low:.4f}, {interval.high:.4f}]" if interval else ""
        _print_row(name, width, f"{value:9.4f}  {format_as_in_papers(value, name):>9}  {bounds:<16}")
    for name, reason in scored_evaluation.absent.items():
        print(f"  {name:<{width}}    absent: {reason}")
    for note in scored_evaluation.notes:
        print(f"\n  note: {escape_message(note)}")
    print()
    width = max(map(len, scored_evaluation.diversity), default=0)
    for name, value in scored_evaluation.diversity.items():
        _print_row(name, width, f"{value:9.4f}")


def _print_row(name: str, width: int, values: str) -> None:
    """Prints a line with the meaning of the metric, which is shortened to the width of a terminal."""
    line = f"  {name:<{width}} {values}  {describe_metric(name)}".rstrip()
    columns = shutil.get_terminal_size().columns
    print(f"{line[: columns - 1]}…" if len(line) > columns and sys.stdout.isatty() else line)

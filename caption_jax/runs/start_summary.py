"""Summary of a run at its start: data, captions, vocabulary, devices and workdir."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax

from caption_jax.specs.resolve import count_truncated
from input_pipeline.records import Split

if TYPE_CHECKING:
    from caption_jax.runs.experiment import Experiment


def describe_start(experiment: Experiment) -> str:
    """Returns a few lines, such as

    run in runs/folder, on 1 x cpu
    train        134 images       670 captions
    val           16 images        80 captions
    captions   at most 42 tokens; config.data.max_length=40 truncates 3
    vocabulary 1,234 tokens
    """
    devices = experiment.mesh.devices.flat
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    lines = [
        f"{'resuming' if experiment.resumes else 'training'} in {experiment.workdir}, on "
        f"{len(devices)} x {devices[0].device_kind}{processes}",
        *_describe_splits(experiment.splits),
        *_describe_captions(experiment),
        f"vocabulary  {experiment.description.vocabulary.size:,} tokens",
    ]
    return "\n".join(lines)


def _describe_splits(splits: Mapping[str, Split]) -> list[str]:
    counts = {name: (f"{len(split):,}", f"{len(split.captions):,}") for name, split in splits.items()}
    images, captions = (max(len(count[column]) for count in counts.values()) for column in (0, 1))
    return [f"{name:<10}  {n:>{images}} images  {m:>{captions}} captions" for name, (n, m) in counts.items()]


def _describe_captions(experiment: Experiment) -> list[str]:
    """Describes the lengths of the training captions; [] in a resumed run, which does not count them."""
    spec, facts = experiment.spec, experiment.facts
    if facts is None or not len(facts.caption_lengths):
        return []
    truncated = count_truncated(spec, facts)
    share = f" ({truncated / len(facts.caption_lengths):.1%})" if truncated else ""
    return [
        f"captions    at most {facts.caption_lengths.max():,} tokens; config.data.max_length={spec.data.max_length} "
        f"truncates {f'{truncated:,}{share}' if truncated else 'none'}"
    ]

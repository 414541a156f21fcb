"""What changes in the captions of the validation images during training, and a warning if a reward makes them worse."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from caption_jax.metrics import diversity
from caption_jax.telemetry.metrics_file import Row, read_metrics

REWARD = "/reward"  # end of the name of the mean reward of samples, after the label of the objective
# Metrics that nothing but better captions raises, and a decrease that is more than noise on 1,000 images.
_WITNESSES = {"BLEU-4": 0.01, "image_to_text_R@1": 0.02}


def describe_captions(captions: Mapping[Hashable, str], tokenizer: str) -> dict[str, float]:
    """Returns the statistics of `caption_jax.metrics.diversity` as scalars named `captions/...`."""
    return {f"captions/{name}": value for name, value in diversity(captions, tokenizer=tokenizer).items()}


def warn_about_rewards(path: epath.PathLike) -> None:
    """Warns if the reward rises while the captions become worse; see `find_conflicts`.

    Args:
        path: the file `metrics.jsonl` of a run, after an evaluation.
    """
    for message in find_conflicts(read_metrics(path)):
        logging.warning("%s", message)


def find_conflicts(rows: Sequence[Row]) -> list[str]:
    """Finds metrics of the last evaluation that are worse than in an earlier one although the reward is higher.

    A model learns to exploit whatever a reward overlooks, such as repeated words or missing endings.

    Args:
        rows: the logged metrics of a run. The reward at an evaluation is the mean since the previous one.

    Returns:
        A message for each such metric; none if no objective has a reward.
    """
    rewards, evaluations = _mean_rewards(rows)
    if not rewards or math.isnan(rewards[-1]):
        return []
    messages = []
    for name, noise in _WITNESSES.items():
        values = np.array([evaluation.values.get(name, math.nan) for evaluation in evaluations])
        if np.isnan(values).all():
            continue
        best = int(np.nanargmax(values))
        if values[-1] < values[best] - noise and rewards[-1] > rewards[best]:
            messages.append(
                f"since step {evaluations[best].step}, the reward of samples has risen from {rewards[best]:.3f} to "
                f"{rewards[-1]:.3f}, but {name} of the validation split has fallen from {values[best]:.3f} to "
                f"{values[-1]:.3f}: the model exploits the reward. Raise config.objective.caption_weight, lower the "
                "learning rate, or add another metric to the reward (docs/training.md#training-on-metrics)"
            )
    return messages


def _mean_rewards(rows: Sequence[Row]) -> tuple[list[float], list[Row]]:
    """Returns the mean reward before each evaluation (NaN if there is none), and the evaluations."""
    means, evaluations, rewards = [], [], []
    for row in rows:
        if row.split == "val":
            evaluations.append(row)
            means.append(float(np.mean(rewards)) if rewards else math.nan)
            rewards = []
        else:
            rewards += [value for name, value in row.values.items() if name.endswith(REWARD)]
    return means, evaluations

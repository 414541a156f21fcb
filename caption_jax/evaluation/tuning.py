"""Tuning of beam search: length penalty, image-text similarity and consensus of the candidates (`--mode=tune`)."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from caption_jax.decoding.beam import EXPONENTS
from caption_jax.errors import ConfigError
from caption_jax.evaluation.candidates import ImageCandidates, find_candidates
from caption_jax.inference.consensus_setup import make_consensus
from caption_jax.inference.ensemble import load_ensemble
from caption_jax.metrics import (
    Comparison,
    ImageScores,
    compare,
    cross_tune,
    protocol,
    score_images,
    split_by_hash,
    write_results,
)
from caption_jax.parameters.sharding import replicated
from caption_jax.retrieval.context_captions import default_kind, open_context
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.loading import load_weights
from caption_jax.runs.workdir import read_spec
from caption_jax.specs import DecodeSpec, as_mapping
from caption_jax.specs.decode_summary import decode_settings
from input_pipeline.extras import require
from input_pipeline.files import write_atomically

# The weights cover several orders of magnitude: beam search scores are in nats per caption (or roughly per token with a
# length penalty), whereas the similarities of the candidates of an image differ by only a few hundredths.
WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
# Expected scores differ by about 1 (CIDEr-D) or a few tenths (other metrics); at 100 they decide alone.
CONSENSUS_WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
SEED = 0  # seed of the split into halves

# Baselines that the tuned captions are compared with.
BASELINE, PENALTY_TUNED = "beam search, configured settings", "beam search, tuned length penalty"
SIMILARITY_TUNED, CONSENSUS_TUNED = f"{PENALTY_TUNED}, similarity", f"{PENALTY_TUNED}, consensus"
# Cross-tuned captions do not correspond to a single setting, so they are stored in separate files.
_FILES = {PENALTY_TUNED: "penalty", "tuned": "tuned"}


@dataclass(frozen=True)
class Setting:
    """A point of the grid: values of keys of `config.decode`."""

    alpha: float
    rerank_weight: float = 0.0
    consensus_weight: float = 0.0


@dataclass(frozen=True)
class Tuning:
    """Results of tuning.

    Attributes:
        settings: the settings of the grid.
        scores: CIDEr-D of each setting on the first half, the second half and all images.
        best: the best setting on all images.
        half_settings: for each half, the setting that scored best on the other half.
        baseline: the setting of the config, without reranking or consensus.
        metrics: system name -> metric -> value over all images.
        gains: system name -> metric -> gain of the cross-tuned captions over that system.
        captions: system name -> image id -> caption.
    """

    settings: list[Setting]
    scores: Float[np.ndarray, "3 settings"]
    best: Setting
    half_settings: tuple[Setting, Setting]
    baseline: Setting
    metrics: dict[str, dict[str, float]]
    gains: dict[str, dict[str, Comparison]]
    captions: dict[str, dict[Any, str]]


def tune_split(experiment: Experiment, split_name: str, context: str = "") -> dict[str, Any]:
    """Tunes `alpha`, `rerank_weight` and `consensus_weight` of beam search on a split.

    Writes tune_<split>.json, and returns its contents. The rerank weight is 0 if the model has no joint embedding.

    Also writes the cross-tuned captions, for which each half uses the setting that scored best on the other half, to
    captions_<split>_tuned.json. Cross-tuned captions of which only `alpha` is tuned are written to
    captions_<split>_penalty.json.

    Args:
        experiment: the run.
        split_name: name of the split.
        context: see `open_context`; "" for the kind of context used in training. Other kinds become part of the file
            names.

    Raises:
        ConfigError: the split is the test split, or `config.decode.num_beams` is below 2.
        MissingPackageError: the `train` extra, which is required to read batches of images, is not installed.
    """
    require("tuning", "grain")
    start_time = time.time()
    decode_spec = _make_beam_search_spec(experiment, split_name)
    split = experiment.split(split_name)
    exponents = sorted({*EXPONENTS[decode_spec.length_penalty], decode_spec.alpha})
    sharding = replicated(experiment.mesh)
    weights = load_weights(experiment.workdir, sharding=sharding)
    ensemble = load_ensemble(decode_spec.ensemble, experiment.description, str(experiment.workdir), sharding)
    context_kind = context or default_kind(experiment)
    context_captions = open_context(experiment, split_name, context_kind)
    train = experiment.splits.get("train")
    consensus = make_consensus(decode_spec, experiment.description, experiment.workdir, train)
    candidates = find_candidates(
        *(experiment, split, weights.variables, decode_spec, exponents, consensus),
        context=context_captions,
        ensemble=ensemble,
    )
    tokenizer = experiment.spec.metrics.tokenizer
    rerank_weights = WEIGHTS if experiment.description.has_joint_embedding else (0.0,)
    with experiment.display.phase("scoring the settings"):
        tuning = tune(split.references, candidates, exponents, decode_spec.alpha, tokenizer, rerank_weights)
    tuning_protocol = {
        "images": len(split.references),
        "unreadable_images": len(split.references) - len(candidates),
        "halves": f"by a hash of image id and seed {SEED}; each half uses the best setting on the other half",
        "intervals": "95% confidence, 10000 paired bootstrap samples; p-values from 10000 randomization samples",
        **({"context": context_kind} if experiment.spec.model.context.max_texts else {}),
        **protocol(tokenizer=tokenizer),
        "decode": as_mapping(decode_spec),
        **({"ensemble_steps": ensemble.steps} if ensemble else {}),
        "device": f"{experiment.mesh.size} x {experiment.mesh.devices.flat[0].device_kind}",
        "wall_seconds": round(time.time() - start_time, 1),
    }
    results = {"split": split_name, "step": weights.step, **_make_results(tuning), "protocol": tuning_protocol}
    results["override"] = _make_override_flags(experiment, replace(decode_spec, **asdict(tuning.best)))
    if jax.process_index() == 0:
        suffix = split_name if context_kind == default_kind(experiment) else f"{split_name}_context_{context_kind}"
        write_atomically(experiment.workdir / f"tune_{suffix}.json", json.dumps(results, indent=2) + "\n")
        for system, name in _FILES.items():
            write_results(experiment.workdir / f"captions_{suffix}_{name}.json", tuning.captions[system])
    return results


def tune(
    references: Mapping[Any, Sequence[str]],
    candidates: Mapping[Any, ImageCandidates],
    exponents: Sequence[float],
    alpha: float,
    tokenizer: str = "ptb",
    rerank_weights: Sequence[float] = WEIGHTS,
) -> Tuning:
    """Evaluates every setting of the grid on precomputed candidates.

    Args:
        references: image id -> reference captions.
        candidates: image id -> candidates; images that could not be read are missing, and their captions are empty.
        exponents: length penalty exponents of the candidates.
        alpha: exponent of the baseline beam search; must be one of `exponents`.
        tokenizer: tokenizer of the metrics; see `caption_jax.metrics.score`.
        rerank_weights: values of `rerank_weight`, including 0.
    """
    settings = [Setting(*values) for values in itertools.product(exponents, rerank_weights, CONSENSUS_WEIGHTS)]
    captions = [_select(references, candidates, exponents.index(setting.alpha), setting) for setting in settings]
    cider = _compute_cider(references, captions, tokenizer)
    halves = split_by_hash(references, SEED)
    scores = np.array([_compute_mean_scores(cider, captions, ids) for ids in (*halves, list(references))])
    baseline = Setting(alpha)

    def cross_tune_some(has_similarity: bool, has_consensus: bool) -> tuple[dict[Any, str], list[int]]:
        """Cross-tunes with the weights of the other measures at 0; returns the captions and the setting per half."""
        indices = [
            index
            for index, setting in enumerate(settings)
            if (has_similarity or not setting.rerank_weight) and (has_consensus or not setting.consensus_weight)
        ]
        output, chosen = cross_tune([captions[i] for i in indices], halves, (scores[0][indices], scores[1][indices]))
        return output, [indices[i] for i in chosen]

    systems = {BASELINE: captions[settings.index(baseline)], PENALTY_TUNED: cross_tune_some(False, False)[0]}
    if len(rerank_weights) > 1:
        systems[SIMILARITY_TUNED] = cross_tune_some(True, False)[0]
        systems[CONSENSUS_TUNED] = cross_tune_some(False, True)[0]
    systems["tuned"], half_indices = cross_tune_some(True, True)
    system_scores: dict[str, ImageScores] = {
        name: score_images(references, output, tokenizer=tokenizer) for name, output in systems.items()
    }
    return Tuning(
        settings=settings,
        scores=scores,
        best=settings[int(np.argmax(scores[2]))],
        half_settings=(settings[half_indices[0]], settings[half_indices[1]]),
        baseline=baseline,
        metrics={name: image_scores.corpus() for name, image_scores in system_scores.items()},
        gains={
            name: compare(image_scores, system_scores["tuned"])
            for name, image_scores in system_scores.items()
            if name != "tuned"
        },
        captions=systems,
    )


def _select(
    references: Mapping[Any, Sequence[str]],
    candidates: Mapping[Any, ImageCandidates],
    exponent_index: int,
    setting: Setting,
) -> dict[Any, str]:
    """Returns the captions that a setting selects; empty for images that could not be read."""
    weights = setting.rerank_weight, setting.consensus_weight
    return {
        image_id: candidates[image_id].best(exponent_index, *weights) if image_id in candidates else ""
        for image_id in references
    }


def _compute_cider(
    references: Mapping[Any, Sequence[str]], captions: Sequence[Mapping[Any, str]], tokenizer: str
) -> dict[Any, dict[str, float]]:
    """Returns image id -> caption -> CIDEr-D for every distinct caption.

    The score depends only on the caption and the references of all images, so each distinct caption is scored once.
    """
    distinct = {image_id: list(dict.fromkeys(output[image_id] for output in captions)) for image_id in references}
    scores: dict[Any, dict[str, float]] = {image_id: {} for image_id in references}
    for index in range(max(map(len, distinct.values()))):
        batch = {image_id: texts[min(index, len(texts) - 1)] for image_id, texts in distinct.items()}
        batch_scores = score_images(references, batch, tokenizer=tokenizer)
        for image_id, value in zip(batch_scores.image_ids, batch_scores.values["CIDEr-D"], strict=True):
            scores[image_id][batch[image_id]] = float(value)
    return scores


def _compute_mean_scores(
    scores: Mapping[Any, Mapping[str, float]], captions: Sequence[Mapping[Any, str]], image_ids: Sequence[Any]
) -> list[float]:
    return [float(np.mean([scores[i][output[i]] for i in image_ids])) for output in captions]


def _make_beam_search_spec(experiment: Experiment, split_name: str) -> DecodeSpec:
    """Checks the arguments of `tune_split` and returns the beam search settings to tune."""
    if split_name == "test":
        raise ConfigError(
            "cannot tune on the test split, because its scores would no longer be unbiased: use --split=val"
        )
    spec = replace(experiment.spec.decode, method="beam", rerank_weight=0.0, consensus_weight=0.0)
    if spec.num_beams < 2:
        raise ConfigError(f"config.decode.num_beams is {spec.num_beams}; tuning requires 2 or more")
    if spec.length_penalty not in EXPONENTS:
        raise ConfigError(
            f"config.decode.length_penalty is {spec.length_penalty!r}; it must be one of {', '.join(EXPONENTS)}"
        )
    return spec


def _make_override_flags(experiment: Experiment, tuned: DecodeSpec) -> str:
    """Returns the command line flags that change the stored decoding settings to the tuned settings."""
    stored, settings = as_mapping(read_spec(experiment.workdir).decode), as_mapping(tuned)
    changed = {name for name, value in settings.items() if value != stored[name]}
    names = ["method", *sorted(changed - {"method"} | {"num_beams", "alpha", "rerank_weight", "consensus_weight"})]
    return " ".join(shlex.quote(f"--config.decode.{name}={settings[name]}") for name in names)


def _make_results(tuning: Tuning) -> dict[str, Any]:
    """Returns the entries of tune_<split>.json that describe the results."""
    setting_scores = zip(tuning.settings, tuning.scores.T.tolist(), strict=True)
    return {
        "chosen": asdict(tuning.best),
        "chosen_on_the_other_half": [asdict(setting) for setting in tuning.half_settings],
        "configured": asdict(tuning.baseline),
        "metrics": tuning.metrics,
        "gain_over": {
            name: {metric: asdict(gain) for metric, gain in gains.items()} for name, gains in tuning.gains.items()
        },
        "settings": [
            {**asdict(setting), "CIDEr-D": overall, "CIDEr-D_of_halves": [first, second]}
            for setting, (first, second, overall) in setting_scores
        ],
    }


def print_tuning(results: Mapping[str, Any]) -> None:
    """Prints the scores of the grid, the comparison of cross-tuned captions and the flags of the best setting."""
    protocol, grid = results["protocol"], results["settings"]
    print(f"\n{results['split']} split: {protocol['images']} images, step {results['step']}, {protocol['device']}")
    print(f"tokenization: {protocol['tokenization']}; decoding: {decode_settings(protocol['decode'])}")
    _print_grid(grid, "rerank_weight", other="consensus_weight")
    _print_grid(grid, "consensus_weight", other="rerank_weight")
    first, second = (tuple(half.values()) for half in results["chosen_on_the_other_half"])
    names = ", ".join(results["chosen"])
    print(f"\ntuned on one half, evaluated on the other ({names}: {first} and {second})\n")
    for name, metrics in results["metrics"].items():
        print(f"  {name:<48} CIDEr-D {metrics['CIDEr-D']:.4f}   BLEU-4 {metrics['BLEU-4']:.4f}")
    for name, gains in results["gain_over"].items():
        gain = gains["CIDEr-D"]
        interval = f"[{gain['low']:+.4f}, {gain['high']:+.4f}], p = {gain['p_value']:.4f}"
        print(f"  CIDEr-D gain over {name}: {gain['difference']:+.4f} {interval}")
    print(f"\nbest on all images:\n  {results['override']}")


def _print_grid(grid: Sequence[Mapping[str, float]], key: str, other: str) -> None:
    """Prints CIDEr-D by alpha and the weight `key`, where the weight `other` is 0; nothing if `key` is fixed."""
    points = [point for point in grid if not point[other]]
    weights, exponents = (list(dict.fromkeys(point[name] for point in points)) for name in (key, "alpha"))
    if len(weights) == 1:
        return
    print(f"\nCIDEr-D of all images, by alpha (down) and {key} (across), with {other}=0\n")
    print(" " * 8 + "".join(f"{weight:8g}" for weight in weights))
    for alpha in exponents:
        row = [point["CIDEr-D"] for point in points if point["alpha"] == alpha]
        print(f"{alpha:8g}" + "".join(f"{value:8.4f}" for value in row))

"""`--mode=tune`: how much the image's say in the ranking of candidates should weigh, and the length of captions."""

from __future__ import annotations

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
from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.evaluation.candidates import ImageCandidates, find_candidates
from caption_jax.evaluation.report.terminal import decode_settings
from caption_jax.metrics import (
    Comparison,
    ImageScores,
    compare,
    cross_tuned,
    protocol,
    score_images,
    seeded_halves,
    write_results,
)
from caption_jax.parameters.sharding import replicated
from caption_jax.retrieval.context_captions import default_kind, open_context
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.loading import load_weights
from caption_jax.runs.workdir import read_spec
from caption_jax.specs import DecodeSpec, as_mapping
from input_pipeline.files import write_atomically

# Beam scores are nats, of the whole caption or (under a length penalty) of a token or so, and the similarities of an
# image's candidates differ by some hundredths: the weight's size depends on both.
WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
SEED = 0  # of the halves

# What the tuned captions are compared with.
GIVEN, PENALTY = "beam search as given", "beam search, penalty tuned alike"
_FILES = {PENALTY: "penalty", "tuned": "tuned"}  # captions that no single setting gives: in files of their own


@dataclass(frozen=True)
class Setting:
    """A point of the grid: `config.decode.alpha` and `config.decode.rerank_weight`."""

    alpha: float
    rerank_weight: float


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes:
        settings: all that were tried.
        scores: CIDEr-D of each on the first half, on the second half, and on all images.
        chosen: the best on all images.
        for_halves: the best on the other half, for each.
        given: the setting of the config, without ranking.
        metrics: name of a system -> metric -> value over all images.
        gains: name of a system -> metric -> what the captions tuned on the other halves gain over it.
        captions: name of a system -> image id -> caption.
    """

    settings: list[Setting]
    scores: Float[np.ndarray, "3 settings"]
    chosen: Setting
    for_halves: tuple[Setting, Setting]
    given: Setting
    metrics: dict[str, dict[str, float]]
    gains: dict[str, dict[str, Comparison]]
    captions: dict[str, dict[Any, str]]


def tune_split(experiment: Experiment, split_name: str, context: str = "") -> dict[str, Any]:
    """Tunes `rerank_weight` and `alpha` of beam search on a split; writes and returns tune_<split>.json.

    The captions that it judges, each half's by what is best on the other, go to captions_<split>_tuned.json, and those
    with the penalty alone tuned to captions_<split>_penalty.json.

    Args:
        experiment: the run.
        split_name: name of the split.
        context: see `open_context`; "" for the kind that the run is trained with, another stands in the file's name.

    Raises:
        ConfigError: the split is the test split, or `config.decode` asks for no beams.
        WorkdirError: the model has no space that images and texts share.
    """
    started = time.time()
    decode_spec = _beam_search(experiment, split_name)
    split = experiment.split(split_name)
    exponents = sorted({*EXPONENTS[decode_spec.length_penalty], decode_spec.alpha})
    weights = load_weights(experiment.workdir, sharding=replicated(experiment.mesh))
    kind = context or default_kind(experiment)
    beside = open_context(experiment, split_name, kind)
    candidates = find_candidates(experiment, split, weights.variables, decode_spec, exponents, beside)
    found = tune(split.references, candidates, exponents, decode_spec.alpha)
    how = {
        "images": len(split.references),
        "unreadable_images": len(split.references) - len(candidates),
        "halves": f"by a hash of image id and seed {SEED}; each half decoded as is best on the other",
        "intervals": "95 % of 10000 paired bootstrap samples; p-values of 10000 random swaps",
        **({"context": kind} if experiment.spec.model.context.slots else {}),
        **protocol(),
        "decode": as_mapping(decode_spec),
        "device": f"{experiment.mesh.size} x {experiment.mesh.devices.flat[0].device_kind}",
        "wall_seconds": round(time.time() - started, 1),
    }
    results = {"split": split_name, "step": weights.step, **_as_results(found), "protocol": how}
    results["override"] = _override(experiment, replace(decode_spec, **asdict(found.chosen)))
    if jax.process_index() == 0:
        suffix = split_name if kind == default_kind(experiment) else f"{split_name}_context_{kind}"
        write_atomically(experiment.workdir / f"tune_{suffix}.json", json.dumps(results, indent=2) + "\n")
        for system, name in _FILES.items():
            write_results(experiment.workdir / f"captions_{suffix}_{name}.json", found.captions[system])
    return results


def tune(
    references: Mapping[Any, Sequence[str]],
    candidates: Mapping[Any, ImageCandidates],
    exponents: Sequence[float],
    alpha: float,
) -> Tuning:
    """Judges every setting of the grid on candidates that are there already.

    Args:
        references: image id -> captions.
        candidates: image id -> candidates; an image that could not be read has none, and an empty caption.
        exponents: those that the candidates were found with.
        alpha: the exponent, one of them, of the beam search to compare with.
    """
    settings = [Setting(exponent, weight) for exponent in exponents for weight in WEIGHTS]
    captions = [
        {
            image_id: candidates[image_id].best(exponents.index(setting.alpha), setting.rerank_weight)
            if image_id in candidates
            else ""
            for image_id in references
        }
        for setting in settings
    ]
    per_image = _cider(references, captions)
    halves = seeded_halves(references, SEED)
    scores = np.array([_means(per_image, captions, ids) for ids in (*halves, list(references))])
    plain = [number for number, setting in enumerate(settings) if not setting.rerank_weight]
    given = Setting(alpha, 0.0)
    tuned, chosen = cross_tuned(captions, halves, (scores[0], scores[1]))
    penalty, _ = cross_tuned([captions[n] for n in plain], halves, (scores[0, plain], scores[1, plain]))
    systems = {GIVEN: captions[settings.index(given)], PENALTY: penalty, "tuned": tuned}
    judged: dict[str, ImageScores] = {name: score_images(references, said) for name, said in systems.items()}
    return Tuning(
        settings=settings,
        scores=scores,
        chosen=settings[int(np.argmax(scores[2]))],
        for_halves=(settings[chosen[0]], settings[chosen[1]]),
        given=given,
        metrics={name: of_system.corpus() for name, of_system in judged.items()},
        gains={name: compare(judged[name], judged["tuned"]) for name in (GIVEN, PENALTY)},
        captions=systems,
    )


def _cider(
    references: Mapping[Any, Sequence[str]], captions: Sequence[Mapping[Any, str]]
) -> dict[Any, dict[str, float]]:
    """Image id -> CIDEr-D of each caption that any setting gives it.

    An image's score depends on its own caption and all references only, so each caption is scored once.
    """
    texts = {image_id: list(dict.fromkeys(said[image_id] for said in captions)) for image_id in references}
    found: dict[Any, dict[str, float]] = {image_id: {} for image_id in references}
    for place in range(max(map(len, texts.values()))):
        said = {image_id: of_image[min(place, len(of_image) - 1)] for image_id, of_image in texts.items()}
        scored = score_images(references, said)
        for image_id, value in zip(scored.image_ids, scored.values["CIDEr-D"], strict=True):
            found[image_id][said[image_id]] = float(value)
    return found


def _means(
    per_image: Mapping[Any, Mapping[str, float]], captions: Sequence[Mapping[Any, str]], image_ids: Sequence[Any]
) -> list[float]:
    return [float(np.mean([per_image[i][said[i]] for i in image_ids])) for said in captions]


def _beam_search(experiment: Experiment, split_name: str) -> DecodeSpec:
    """The beam search to tune, after checks."""
    if split_name == "test":
        raise ConfigError(
            "settings that are chosen on the test split make its scores worthless: tune on another, with --split=val"
        )
    if experiment.model().shared_space is None:
        raise WorkdirError(
            "this run's model has no space that images and texts share, so captions cannot be ranked by the image: "
            "train one with config.objective.contrastive_weight above 0, as configs/flickr8k_search.py does"
        )
    spec = replace(experiment.spec.decode, method="beam", rerank_weight=0.0)
    if spec.beams < 2:
        raise ConfigError(f"config.decode.beams={spec.beams} gives one candidate: set it to 2 or more")
    if spec.length_penalty not in EXPONENTS:
        raise ConfigError(
            f"config.decode.length_penalty is {spec.length_penalty!r}; it must be one of {', '.join(EXPONENTS)}"
        )
    return spec


def _override(experiment: Experiment, chosen: DecodeSpec) -> str:
    """The flags that give the stored config these decode settings."""
    stored, wanted = as_mapping(read_spec(experiment.workdir).decode), as_mapping(chosen)
    changed = {name for name, value in wanted.items() if value != stored[name]}
    names = ["method", *sorted(changed - {"method"} | {"beams", "alpha", "rerank_weight"})]
    return " ".join(shlex.quote(f"--config.decode.{name}={wanted[name]}") for name in names)


def _as_results(found: Tuning) -> dict[str, Any]:
    """The part of tune_<split>.json that says what was found."""
    rows = zip(found.settings, found.scores.T.tolist(), strict=True)
    return {
        "chosen": asdict(found.chosen),
        "chosen_on_the_other_half": [asdict(setting) for setting in found.for_halves],
        "given": asdict(found.given),
        "metrics": found.metrics,
        "gain_over": {
            name: {metric: asdict(gain) for metric, gain in gains.items()} for name, gains in found.gains.items()
        },
        "settings": [
            {**asdict(setting), "CIDEr-D": whole, "CIDEr-D_of_halves": [first, second]}
            for setting, (first, second, whole) in rows
        ],
    }


def print_tuning(results: Mapping[str, Any]) -> None:
    """Prints the grid, what the honest comparison gave, and the flags to use."""
    how, cells = results["protocol"], results["settings"]
    print(f"\n{results['split']} split: {how['images']} images, step {results['step']}, {how['device']}")
    print(f"tokenization: {how['tokenization']}; decoding: {decode_settings(how['decode'])}\n")
    print("CIDEr-D of all images, by alpha (down) and rerank_weight (across)\n")
    print(" " * 8 + "".join(f"{weight:8g}" for weight in WEIGHTS))
    for start in range(0, len(cells), len(WEIGHTS)):
        row = cells[start : start + len(WEIGHTS)]
        print(f"{row[0]['alpha']:8g}" + "".join(f"{cell['CIDEr-D']:8.4f}" for cell in row))
    first, second = ((half["alpha"], half["rerank_weight"]) for half in results["chosen_on_the_other_half"])
    print(f"\ntuned on one half, judged on the other (alpha, rerank_weight: {first} and {second})\n")
    for name, metrics in results["metrics"].items():
        print(f"  {name:<34} CIDEr-D {metrics['CIDEr-D']:.4f}   BLEU-4 {metrics['BLEU-4']:.4f}")
    for name, gains in results["gain_over"].items():
        gain = gains["CIDEr-D"]
        interval = f"[{gain['low']:+.4f}, {gain['high']:+.4f}], p {gain['p_value']:.4f}"
        print(f"  CIDEr-D gained over {name}: {gain['difference']:+.4f} {interval}")
    print(f"\nbest on all images:\n  {results['override']}")

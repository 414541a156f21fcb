"""`config.decode.ensemble`: averages of several models' probabilities, and models that cannot be combined."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import STEP, write_random_model
from small_run import ROOT, box_image, run_main

import caption_jax
from caption_jax.errors import ConfigError, MissingFileError
from caption_jax.evaluation.eval_step import make_eval_step
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.runs.loading import load_model
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import BOS, EOS, PAD

IMAGES = [box_image("red", "left"), box_image("blue", "right"), box_image("green", "left")]
BEAM = {"method": "beam", "num_beams": 3, "max_length": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Workdirs of three models with the same tokenizer; the third normalises pixels differently."""
    folder = tmp_path_factory.mktemp("models")
    write_random_model(folder / "a", seed=1)
    write_random_model(folder / "b", seed=2)
    write_random_model(folder / "c", seed=3, preprocessing=Preprocessing(size=32, mean=(100, 110, 120), std=(60,) * 3))
    return {name: str(folder / name) for name in "abc"}


def compute_log_probs(workdir: str, tokens: np.ndarray) -> np.ndarray:
    """Returns the log-probabilities [images, captions, length, vocabulary] of the next tokens under one model."""
    loaded = load_model(workdir)
    description, variables = loaded.description, loaded.weights.variables
    model = description.model()
    pixels = np.stack([description.preprocessing.load(image) for image in IMAGES])
    features = encode_for_decoding(model, variables, jnp.asarray(pixels), None, description)
    logits = model.apply(variables, tokens, features, method="decode").logits
    return np.asarray(jax.nn.log_softmax(logits))


def average(*log_probs: np.ndarray) -> np.ndarray:
    return np.log(np.mean(np.exp(log_probs), axis=0))


def test_an_ensemble_of_a_model_with_itself_is_the_model(models):
    single = caption_jax.load(models["a"], decode_config=BEAM).caption(IMAGES)
    doubled = caption_jax.load(models["a"], decode_config=BEAM | {"ensemble": (models["a"],)}).caption(IMAGES)
    assert [caption.text for caption in doubled] == [caption.text for caption in single]
    np.testing.assert_allclose([c.log_prob for c in doubled], [c.log_prob for c in single], atol=1e-4)


@pytest.mark.slow
def test_the_probabilities_of_three_models_are_averaged(models):
    settings = {"max_length": 8, "ensemble": (models["b"], f"{models['c']}@{STEP}")}
    captioner = caption_jax.load(models["a"], decode_config=settings)
    captions = captioner.caption(IMAGES)
    vocabulary = captioner._description.vocabulary
    ids = {token: number for number, token in enumerate(vocabulary.decode_tokens(range(vocabulary.size)))}
    tokens = np.full((len(IMAGES), 1, 8), PAD)
    for row, caption in zip(tokens[:, 0], captions, strict=True):
        words = [BOS, *(ids[token] for token in caption.tokens), EOS][:8]
        row[: len(words)] = words
    log_probs = average(*(compute_log_probs(models[name], tokens[..., :-1]) for name in "abc"))[:, 0]
    log_probs[..., [BOS, PAD]] = -np.inf  # which decoding forbids
    for image, caption in enumerate(captions):
        targets = tokens[image, 0, 1:]
        length = int((targets != PAD).sum())
        np.testing.assert_array_equal(log_probs[image, :length].argmax(-1), targets[:length])  # greedy
        chosen = log_probs[image, np.arange(length), targets[:length]].sum()
        assert caption.log_prob == pytest.approx(chosen, abs=1e-4)


@pytest.mark.slow
def test_the_evaluation_step_computes_the_loss_of_the_averaged_probabilities(models):
    loaded = [load_model(models[name]) for name in "ab"]
    description = loaded[0].description
    pixels = np.stack([description.preprocessing.load(image) for image in IMAGES])
    captions = ["a red box on the left", "a green box", "a box on the right"]
    tokens = np.stack([description.vocabulary.encode_batch([text, captions[0]], 10) for text in captions])
    batch = {"image": pixels, "tokens": tokens, "mask": np.array([True, True, False]), "index": np.arange(3)}
    step = make_eval_step(description.model(), description, others=[loaded[1].description])
    outputs = jax.jit(step)(loaded[0].weights.variables, batch, (loaded[1].weights.variables,))
    log_probs = average(*(compute_log_probs(models[name], tokens[..., :-1]) for name in "ab"))
    targets = tokens[..., 1:]
    weights = (targets != PAD) & batch["mask"][:, None, None]
    chosen = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(outputs["loss_sum"], -(chosen * weights).sum(), rtol=1e-5)
    assert outputs["weight_sum"] == weights.sum()
    assert outputs["correct_sum"] == ((log_probs.argmax(-1) == targets) & weights).sum()


@pytest.mark.slow
def test_evaluate_names_the_models_and_scores_the_ensemble(small_workdir, tmp_path, capsys):
    workdir = shutil.copytree(small_workdir, tmp_path / "run")
    evaluate = ["evaluate", f"--workdir={workdir}", "--split=train"]
    assert run_main(*evaluate) == 0
    single = json.loads((workdir / "eval_train.json").read_text())
    capsys.readouterr()
    assert run_main(*evaluate, f"--config.decode.ensemble={small_workdir}") == 0
    assert f"ensemble with {small_workdir} (step 160)" in capsys.readouterr().out
    doubled = json.loads((workdir / "eval_train.json").read_text())
    assert doubled["metrics"] == pytest.approx(single["metrics"], abs=1e-4)
    assert doubled["protocol"]["ensemble_steps"] == {str(small_workdir): 160}
    names = str((str(small_workdir), f"{small_workdir}@last"))
    IMAGES[0].save(tmp_path / "photo.png")
    assert run_main("caption", f"--workdir={workdir}", f"--config.decode.ensemble={names}", tmp_path / "photo.png") == 0
    assert "red box" in capsys.readouterr().out


def test_models_that_cannot_be_combined_are_rejected(models, tmp_path):
    write_random_model(tmp_path / "tokens", captions=("one dog runs", "two cats sleep"))
    write_random_model(tmp_path / "size", preprocessing=Preprocessing(size=48))
    write_random_model(tmp_path / "crop", preprocessing=Preprocessing(size=32, resize="crop"))
    for name, pattern in {
        "tokens": "combines models with the same tokenizer, but .*/a has .* and .*/tokens has ",
        "size": "data.image_size is 32 in .*/a and 48 in .*/size",
        "crop": "data.resize is 'stretch' in .*/a and 'crop' in .*/crop",
    }.items():
        with pytest.raises(ConfigError, match=pattern):
            caption_jax.load(models["a"], decode_config={"ensemble": (models["b"], str(tmp_path / name))})
    with pytest.raises(MissingFileError, match="missing"):
        caption_jax.load(models["a"], decode_config={"ensemble": (str(tmp_path / "missing"),)})


@pytest.mark.parametrize("arguments", [("train", "--dry_run"), ("plan", "--topology=cpu:1")])
def test_subcommands_with_a_single_model_refuse_an_ensemble(arguments, models, small_images, tmp_path):
    flags = [f"--config={ROOT / 'tests' / 'small_run.py'}", f"--config.data.root={small_images}"]
    with pytest.raises(ConfigError, match=rf"evaluate, tune, caption and index, but {arguments[0]} uses a single"):
        run_main(*arguments, *flags, f"--workdir={tmp_path / 'run'}", f"--config.decode.ensemble={models['a']}")

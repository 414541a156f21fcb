"""With config.init_from, a run is initialised from another run, whose vocabulary may differ."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax import traverse_util
from small_run import get_config, write_images

from caption_jax.models.build import roberta_settings
from caption_jax.runs import workdir as workdir_files
from caption_jax.runs.checkpoints import Checkpoints
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.experiment import start_experiment
from caption_jax.runs.transfer import transfer_weights
from caption_jax.specs import RunSpec, TextEncoderSpec
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import PAD
from input_pipeline.tokenizer import Tokenizer, Vocabulary

CAPTIONS = ["a red box on the left"] * 2 + ["a green box on the right"] * 2
OTHER_CAPTIONS = ["a green kettle under the tree"] * 2 + ["a small box"] * 2


def make_vocabulary(captions: list[str]) -> Vocabulary:
    tokenizer = Tokenizer.train(captions, 300)
    return Vocabulary(tokenizer, {token for ids in tokenizer.encode_batch(captions) for token in ids})


VOCABULARY_SIZE = make_vocabulary(CAPTIONS).size


def make_description(captions: list[str] = CAPTIONS, max_length: int = 10, **decoder) -> RunDescription:
    config = get_config()
    config.model.decoder.update({"feed_forward": VOCABULARY_SIZE, **decoder})
    vocabulary = make_vocabulary(captions)
    model_settings = ModelSettings(vocabulary.size, max_length, {"padding": "symmetric", "norm_epsilon": 1e-5})
    return RunDescription(
        RunSpec.from_config(config), model_settings, Preprocessing(size=32, mean=(1, 2, 3), std=(4, 5, 6)), vocabulary
    )


def make_variables(run: RunDescription, seed: int) -> dict[str, np.ndarray]:
    """Returns variables of the model by path, sampled in NumPy because initialisation would require a compilation."""
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 1, run.model_settings.max_length - 1), np.int32)
    shapes = jax.eval_shape(run.model().init, jax.random.key(0), images, tokens)
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(dict(shapes), sep="/")
    return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def unflatten(flat: dict[str, np.ndarray]) -> dict:
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A workdir with a checkpoint, and the weights by path."""
    folder = tmp_path_factory.mktemp("source")
    return folder, write_run(folder, make_description(), seed=1)


def write_run(folder: Path, run: RunDescription, seed: int) -> dict[str, np.ndarray]:
    """Writes a workdir with random weights, and returns the weights by path."""
    weights = make_variables(run, seed)
    workdir_files.write_description(epath.Path(folder), run)
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, jax.tree.map(jax.numpy.asarray, unflatten(weights)), {"step": jax.numpy.int32(3)}, {})
    checkpoints.close()
    return weights


def run_transfer(source: Path, run: RunDescription) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the variables before and after the transfer."""
    fresh = make_variables(run, seed=2)
    result = transfer_weights(unflatten(fresh), str(source), run.vocabulary)
    return fresh, {path: np.asarray(value) for path, value in traverse_util.flatten_dict(result, sep="/").items()}


def test_all_arrays_are_copied_if_the_model_and_vocabulary_are_the_same(source):
    folder, weights = source
    _, result = run_transfer(folder, make_description())
    assert result.keys() == weights.keys()
    for path in weights:
        np.testing.assert_array_equal(result[path], weights[path], err_msg=path)


def test_rows_of_common_tokens_are_copied_into_a_different_vocabulary(source, caplog):
    folder, weights = source
    run = make_description(OTHER_CAPTIONS)
    old, new = make_description().vocabulary.tokens, run.vocabulary.tokens
    common = set(old) & set(new)
    assert len({"<s>", "</s>"} & common) == 2 and len(common) < len(new) and list(old) != list(new)
    with caplog.at_level(logging.INFO, logger="absl"):
        fresh, result = run_transfer(folder, run)
    for path in ("params/decoder/embedding", "params/decoder/output_bias"):
        for row, token in enumerate(new):
            expected = weights[path][old.index(token)] if token in common else fresh[path][row]
            np.testing.assert_array_equal(result[path][row], expected, err_msg=f"{path}, {token}")
        assert f"{path} ({len(common)} of {len(new)} rows)" in caplog.text
    for path in set(result) - {"params/decoder/embedding", "params/decoder/output_bias"}:
        np.testing.assert_array_equal(result[path], weights[path], err_msg=path)


def test_token_embeddings_are_identified_by_name(source):
    """A kernel whose number of rows equals the vocabulary size is not a token embedding."""
    folder, weights = source
    assert any(array.shape[0] == VOCABULARY_SIZE for path, array in weights.items() if path.endswith("kernel"))
    size = make_description().vocabulary.size
    tokenizer = make_description().vocabulary.tokenizer
    # A vocabulary of the same size, with an unused byte instead of the last token.
    full_ids = sorted(int(i) for i in make_description().vocabulary.to_full(range(4, size)))[:-1]
    unused = next(i for i in range(5, tokenizer.size) if i not in full_ids)
    run = dataclasses.replace(make_description(), vocabulary=Vocabulary(tokenizer, [*full_ids, unused]))
    assert run.vocabulary.size == size and run.vocabulary.tokens != make_description().vocabulary.tokens
    _, result = run_transfer(folder, run)
    changed = {path for path in weights if not np.array_equal(result[path], weights[path])}
    assert changed == {"params/decoder/embedding", "params/decoder/output_bias"}


def test_position_embeddings_are_copied_into_a_longer_sequence(source):
    folder, weights = source
    fresh, result = run_transfer(folder, make_description(max_length=14))
    path = "params/decoder/position"
    assert len(result[path]) == 14
    np.testing.assert_array_equal(result[path][:10], weights[path])
    np.testing.assert_array_equal(result[path][10:], fresh[path][10:])


def test_arrays_of_equal_shape_are_copied_into_a_different_decoder(source, caplog):
    folder, weights = source
    with caplog.at_level(logging.INFO, logger="absl"):
        fresh, result = run_transfer(folder, make_description(feed_forward=64))
    for path in result:
        expected = weights[path] if result[path].shape == weights[path].shape else fresh[path]
        np.testing.assert_array_equal(result[path], expected, err_msg=path)
    path = "params/decoder/layer_0/feed_forward/expand/kernel"
    assert f"{path} (stored shape (16, {VOCABULARY_SIZE}), not (16, 64))" in caplog.text


def test_a_run_with_a_different_image_encoder_is_rejected(source):
    folder, _ = source
    run = make_description(width=24, feed_forward=64)
    encoder = dataclasses.replace(run.spec.model.encoder, variant="tiny")
    model = dataclasses.replace(run.spec.model, encoder=encoder)
    run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, model=model))
    with pytest.raises(ValueError, match=r"init_from=.* is a run of another model: .*image_encoder/backbone/"):
        run_transfer(folder, run)


def test_a_folder_that_is_not_a_workdir_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*is not the workdir of a training run"):
        run_transfer(tmp_path, make_description())
    config = get_config()
    config.data.root, config.init_from = str(write_images(tmp_path / "data")), str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=rf"config.init_from: {tmp_path}/none/config.json is missing"):
        start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "run"))


def test_preprocessing_is_copied_with_the_image_encoder(source, tmp_path):
    """The weights from config.init_from replace the pretrained weights of the config."""
    config = get_config()
    config.data.root = str(write_images(tmp_path / "data"))
    fresh = start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "fresh")).description
    config.init_from = str(source[0])
    copied = start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "copied")).description
    assert copied.model_settings.backbone == {"padding": "symmetric", "norm_epsilon": 1e-5}
    assert (copied.preprocessing.mean, copied.preprocessing.std) == ((1, 2, 3), (4, 5, 6))
    assert copied.preprocessing.size == config.data.image_size
    config.model.encoder.variant = "tiny"  # not copied into a different encoder
    other = start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "other")).description
    assert other.model_settings.backbone == fresh.model_settings.backbone == {"padding": "same", "norm_epsilon": 1e-3}
    assert other.preprocessing == fresh.preprocessing != copied.preprocessing


def add_text_encoder(run: RunDescription) -> RunDescription:
    text = TextEncoderSpec(layers=1, width=8, heads=2, feed_forward=8)
    spec = dataclasses.replace(run.spec, model=dataclasses.replace(run.spec.model, text_encoder=text))
    sizes = roberta_settings(text, run.vocabulary.size, run.model_settings.max_length, PAD)
    settings = dataclasses.replace(run.model_settings, text_encoder=sizes)
    return dataclasses.replace(run, spec=spec, model_settings=settings)


def test_text_encoder_embeddings_are_copied_by_token(tmp_path):
    run = add_text_encoder(make_description())
    weights = write_run(tmp_path, run, seed=1)
    other = add_text_encoder(make_description(OTHER_CAPTIONS, max_length=14))
    fresh, result = run_transfer(tmp_path, other)
    old, new = run.vocabulary.tokens, other.vocabulary.tokens
    embeddings = "params/text_encoder/roberta/embeddings"
    words, positions = f"{embeddings}/word_embeddings/embedding", f"{embeddings}/position_embeddings/embedding"
    for row, token in enumerate(new):
        expected = weights[words][old.index(token)] if token in old else fresh[words][row]
        np.testing.assert_array_equal(result[words][row], expected, err_msg=token)
    np.testing.assert_array_equal(result[positions][:12], weights[positions])
    np.testing.assert_array_equal(result[positions][12:], fresh[positions][12:])
    for path in ("params/joint_embedding/log_scale", "params/text_encoder/dense/kernel"):
        np.testing.assert_array_equal(result[path], weights[path], err_msg=path)


def test_embeddings_of_full_ids_are_copied_by_row(tmp_path):
    """The embedding matrix of a RoBERTa has a row for each token of the tokenizer."""

    def make_full_description(captions: list[str]) -> RunDescription:
        run = add_text_encoder(make_description(captions))
        text_encoder = {**run.model_settings.text_encoder, "vocab_size": 300}
        settings = dataclasses.replace(run.model_settings, text_encoder=text_encoder)
        return dataclasses.replace(run, model_settings=settings)

    weights = write_run(tmp_path, make_full_description(CAPTIONS), seed=1)
    _, result = run_transfer(tmp_path, make_full_description(OTHER_CAPTIONS))
    path = "params/text_encoder/roberta/embeddings/word_embeddings/embedding"
    np.testing.assert_array_equal(result[path], weights[path])


def test_a_missing_text_encoder_is_reported_and_other_weights_are_copied(source, caplog):
    folder, weights = source
    with caplog.at_level(logging.INFO, logger="absl"):
        fresh, result = run_transfer(folder, add_text_encoder(make_description()))
    assert "params/joint_embedding/log_scale" in caplog.text
    for path in result:
        np.testing.assert_array_equal(result[path], weights.get(path, fresh[path]), err_msg=path)

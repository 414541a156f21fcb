"""config.init_from: a run starts from the weights of another run, which may have another vocabulary."""

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


def vocabulary_of(captions: list[str]) -> Vocabulary:
    tokenizer = Tokenizer.train(captions, 300)
    return Vocabulary(tokenizer, {token for ids in tokenizer.encode_batch(captions) for token in ids})


ROWS = vocabulary_of(CAPTIONS).size


def description(captions: list[str] = CAPTIONS, max_length: int = 10, **decoder) -> RunDescription:
    config = get_config()
    config.model.decoder.update({"feed_forward": ROWS, **decoder})
    vocabulary = vocabulary_of(captions)
    model_settings = ModelSettings(vocabulary.size, max_length, {"padding": "symmetric", "norm_epsilon": 1e-5})
    return RunDescription(
        RunSpec.from_config(config), model_settings, Preprocessing(size=32, mean=(1, 2, 3), std=(4, 5, 6)), vocabulary
    )


def filled(run: RunDescription, seed: int) -> dict[str, np.ndarray]:
    """Variables of the model by path, random instead of initialised, which would need a compilation."""
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 1, run.model_settings.max_length - 1), np.int32)
    shapes = jax.eval_shape(run.model().init, jax.random.key(0), images, tokens)
    random = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(dict(shapes), sep="/")
    return {path: random.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def nested(flat: dict[str, np.ndarray]) -> dict:
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A workdir with a checkpoint, and its weights."""
    folder = tmp_path_factory.mktemp("source")
    return folder, write_run(folder, description(), seed=1)


def write_run(folder: Path, run: RunDescription, seed: int) -> dict[str, np.ndarray]:
    """Writes a workdir with random weights. Returns the weights."""
    weights = filled(run, seed)
    workdir_files.write_description(epath.Path(folder), run)
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, jax.tree.map(jax.numpy.asarray, nested(weights)), {"step": jax.numpy.int32(3)}, {})
    checkpoints.close()
    return weights


def transferred(source: Path, run: RunDescription) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the variables before and after the transfer."""
    fresh = filled(run, seed=2)
    result = transfer_weights(nested(fresh), str(source), run.vocabulary)
    return fresh, {path: np.asarray(value) for path, value in traverse_util.flatten_dict(result, sep="/").items()}


def test_the_same_model_and_vocabulary_copy_everything(source):
    folder, weights = source
    _, result = transferred(folder, description())
    assert result.keys() == weights.keys()
    for path in weights:
        np.testing.assert_array_equal(result[path], weights[path], err_msg=path)


def test_another_vocabulary_copies_the_rows_of_shared_tokens(source, caplog):
    folder, weights = source
    run = description(OTHER_CAPTIONS)
    old, new = description().vocabulary.tokens, run.vocabulary.tokens
    shared = set(old) & set(new)
    assert len({"<s>", "</s>"} & shared) == 2 and len(shared) < len(new) and list(old) != list(new)
    with caplog.at_level(logging.INFO, logger="absl"):
        fresh, result = transferred(folder, run)
    for path in ("params/decoder/embedding", "params/decoder/output_bias"):
        for row, token in enumerate(new):
            expected = weights[path][old.index(token)] if token in shared else fresh[path][row]
            np.testing.assert_array_equal(result[path][row], expected, err_msg=f"{path}, {token}")
        assert f"{path} ({len(shared)} of {len(new)} rows)" in caplog.text
    for path in set(result) - {"params/decoder/embedding", "params/decoder/output_bias"}:
        np.testing.assert_array_equal(result[path], weights[path], err_msg=path)


def test_rows_are_matched_by_name_not_by_size(source):
    """A kernel with as many rows as the vocabulary has tokens is not a token embedding."""
    folder, weights = source
    assert any(array.shape[0] == ROWS for path, array in weights.items() if path.endswith("kernel"))
    size = description().vocabulary.size
    tokenizer = description().vocabulary.tokenizer
    # A vocabulary of the same size, with another byte instead of a word.
    full_ids = sorted(int(i) for i in description().vocabulary.to_full(range(4, size)))[:-1]
    unused = next(i for i in range(5, tokenizer.size) if i not in full_ids)
    run = dataclasses.replace(description(), vocabulary=Vocabulary(tokenizer, [*full_ids, unused]))
    assert run.vocabulary.size == size and run.vocabulary.tokens != description().vocabulary.tokens
    _, result = transferred(folder, run)
    changed = {path for path in weights if not np.array_equal(result[path], weights[path])}
    assert changed == {"params/decoder/embedding", "params/decoder/output_bias"}


def test_longer_captions_copy_the_shared_positions(source):
    folder, weights = source
    fresh, result = transferred(folder, description(max_length=14))
    path = "params/decoder/position"
    assert len(result[path]) == 14
    np.testing.assert_array_equal(result[path][:10], weights[path])
    np.testing.assert_array_equal(result[path][10:], fresh[path][10:])


def test_another_decoder_copies_the_image_encoder_and_lists_fresh_arrays(source, caplog):
    folder, weights = source
    with caplog.at_level(logging.INFO, logger="absl"):
        fresh, result = transferred(folder, description(feed_forward=64))
    for path in result:
        fits = result[path].shape == weights[path].shape
        np.testing.assert_array_equal(result[path], weights[path] if fits else fresh[path], err_msg=path)
    path = "params/decoder/layer_0/feed_forward/expand/kernel"
    assert f"{path} (stored shape (16, {ROWS}), not (16, 64))" in caplog.text


def test_another_model_is_rejected(source):
    folder, _ = source
    run = description(width=24, feed_forward=64)
    encoder = dataclasses.replace(run.spec.model.encoder, variant="tiny")
    model = dataclasses.replace(run.spec.model, encoder=encoder)
    run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, model=model))
    with pytest.raises(ValueError, match=r"init_from=.* is a run of another model: .*image_encoder/backbone/"):
        transferred(folder, run)


def test_a_folder_that_is_not_a_workdir_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*is not the workdir of a training run"):
        transferred(tmp_path, description())


def test_preprocessing_is_that_of_the_copied_encoder(source, tmp_path):
    """The weights of config.init_from replace the pretrained weights of the config."""
    config = get_config()
    config.data.root = str(write_images(tmp_path / "data"))
    fresh = start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "fresh")).description
    config.init_from = str(source[0])
    tuned = start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "tuned")).description
    assert tuned.model_settings.backbone == {"padding": "symmetric", "norm_epsilon": 1e-5}
    assert (tuned.preprocessing.mean, tuned.preprocessing.std) == ((1, 2, 3), (4, 5, 6))
    assert tuned.preprocessing.size == config.data.image_size
    config.model.encoder.variant = "tiny"  # nothing is copied into another encoder
    other = start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "other")).description
    assert other.model_settings.backbone == fresh.model_settings.backbone == {"padding": "same", "norm_epsilon": 1e-3}
    assert other.preprocessing == fresh.preprocessing != tuned.preprocessing


def with_text_encoder(run: RunDescription) -> RunDescription:
    text = TextEncoderSpec(layers=1, width=8, heads=2, feed_forward=8)
    spec = dataclasses.replace(run.spec, model=dataclasses.replace(run.spec.model, text_encoder=text))
    sizes = roberta_settings(text, run.vocabulary.size, run.model_settings.max_length, PAD)
    settings = dataclasses.replace(run.model_settings, text_encoder=sizes)
    return dataclasses.replace(run, spec=spec, model_settings=settings)


def test_a_text_encoder_is_copied_token_by_token(tmp_path):
    run = with_text_encoder(description())
    weights = write_run(tmp_path, run, seed=1)
    other = with_text_encoder(description(OTHER_CAPTIONS, max_length=14))
    fresh, result = transferred(tmp_path, other)
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
    """The embedding of a RoBERTa has a row per token of the tokenizer, also for tokens that no caption has."""

    def full(run: RunDescription) -> RunDescription:
        run = with_text_encoder(run)
        return dataclasses.replace(
            run,
            model_settings=dataclasses.replace(
                run.model_settings, text_encoder={**run.model_settings.text_encoder, "vocab_size": 300}
            ),
        )

    weights = write_run(tmp_path, full(description()), seed=1)
    _, result = transferred(tmp_path, full(description(OTHER_CAPTIONS)))
    path = "params/text_encoder/roberta/embeddings/word_embeddings/embedding"
    np.testing.assert_array_equal(result[path], weights[path])


def test_a_run_without_text_encoder_copies_its_other_weights(source, caplog):
    folder, weights = source
    with caplog.at_level(logging.INFO, logger="absl"):
        fresh, result = transferred(folder, with_text_encoder(description()))
    assert "params/joint_embedding/log_scale" in caplog.text
    for path in result:
        np.testing.assert_array_equal(result[path], weights.get(path, fresh[path]), err_msg=path)

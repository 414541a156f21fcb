"""Text encoders with RoBERTa weights use the full ids of the checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from small_roberta import TEXTS, make_roberta_config, write_roberta

from caption_jax.pretrained.roberta_weights import load_roberta
from caption_jax.runs.experiment import Experiment, start_experiment
from caption_jax.runs.initial_variables import initial_variables
from caption_jax.specs import RunSpec
from input_pipeline.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """A folder with a random RoBERTa and its tokenizer."""
    folder = tmp_path_factory.mktemp("roberta")
    write_roberta(folder, "msgpack")
    return folder


def start_run(config: ConfigDict, workdir: Path) -> Experiment:
    return start_experiment(RunSpec.from_config(config), epath.Path(workdir))


@pytest.mark.slow
def test_the_text_encoder_has_the_stored_weights_and_uses_full_ids(roberta, small_images, tmp_path):
    experiment = start_run(make_roberta_config(roberta, small_images), tmp_path)
    description = experiment.description
    params = initial_variables(experiment)["params"]["text_encoder"]["roberta"]
    expected = load_roberta(str(roberta)).params
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    for path, value in traverse_util.flatten_dict(jax.device_get(expected), sep="/").items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path)

    tokenizer, text_tokenizer = description.vocabulary.tokenizer, description.text_tokenizer
    assert description.vocabulary.size < tokenizer.size
    (ids,) = text_tokenizer.encode(["a zebra"])
    assert ids[ids != 1].tolist() == tokenizer.encode("a zebra"), "words that do not occur in the captions have ids"
    captions = ["a green box on the right", "on the left"]
    compact = description.vocabulary.encode_batch(captions, 10)
    np.testing.assert_array_equal(text_tokenizer.from_caption_ids(compact), text_tokenizer.encode(captions))
    assert not np.array_equal(compact, text_tokenizer.encode(captions))


def test_a_different_tokenizer_is_rejected(roberta, small_images, tmp_path):
    config = make_roberta_config(roberta, small_images)
    config.data.tokenizer = "train"
    with pytest.raises(
        ValueError, match=r"(?s)model\.text_encoder\.weights=.*vocabulary of \d+ tokens.*data\.tokenizer=train"
    ):
        start_run(config, tmp_path)
    Tokenizer.train(TEXTS[:1] * 2, 300).save(tmp_path / "other")
    config.data.tokenizer = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"set config\.data\.tokenizer to the tokenizer of the checkpoint"):
        start_run(config, tmp_path)


def test_captions_longer_than_the_position_embeddings_are_rejected(roberta, small_images, tmp_path):
    config = make_roberta_config(roberta, small_images)
    config.data.max_length = 13
    with pytest.raises(ValueError, match=r"data\.max_length=13, but .* has positions for 12 tokens"):
        start_run(config, tmp_path)


def test_a_text_encoder_without_pretrained_weights_uses_compact_ids(small_images, tmp_path):
    config = small_run.get_config()
    config.data.root = str(small_images)
    config.objective.contrastive_weight = 0.5
    description = start_run(config, tmp_path).description
    assert description.model_settings.text_encoder["vocab_size"] == description.vocabulary.size
    encoded = description.text_tokenizer.encode(["a red box", "a zebra"])
    np.testing.assert_array_equal(encoded, description.vocabulary.encode_batch(["a red box", "a zebra"], 10))

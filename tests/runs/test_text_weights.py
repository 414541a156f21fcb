"""A text encoder that starts from a RoBERTa: it reads the ids of its tokenizer and rejects any other tokenizer."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from small_roberta import TEXTS, roberta_config, write_roberta

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


def start(config: ConfigDict, workdir: Path) -> Experiment:
    return start_experiment(RunSpec.from_config(config), epath.Path(workdir))


def test_the_encoder_starts_from_the_weights_and_reads_full_ids(roberta, small_images, tmp_path):
    experiment = start(roberta_config(roberta, small_images), tmp_path)
    description = experiment.description
    with small_run.quick_compilation():
        params = initial_variables(experiment)["params"]["text_encoder"]["roberta"]
    expected = load_roberta(str(roberta)).params
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    for path, value in traverse_util.flatten_dict(jax.device_get(expected), sep="/").items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path)

    tokenizer, reader = description.vocabulary.tokenizer, description.text_tokenizer
    assert description.vocabulary.size < tokenizer.size
    (ids,) = reader.encode(["a zebra"])
    assert ids[ids != 1].tolist() == tokenizer.encode("a zebra"), "words that the captions lack are known"
    captions = ["a green box on the right", "on the left"]
    compact = description.vocabulary.encode_batch(captions, 10)
    np.testing.assert_array_equal(reader.from_caption_ids(compact), reader.encode(captions))
    assert not np.array_equal(compact, reader.encode(captions))


def test_another_tokenizer_is_rejected(roberta, small_images, tmp_path):
    config = roberta_config(roberta, small_images)
    config.data.tokenizer = "train"
    with pytest.raises(
        ValueError, match=r"(?s)model\.text_encoder\.weights=.*trained with \d+ tokens.*data\.tokenizer=train"
    ):
        start(config, tmp_path)
    Tokenizer.train(TEXTS[:1] * 2, 300).save(tmp_path / "other")
    config.data.tokenizer = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"set config\.data\.tokenizer to the tokenizer of the checkpoint"):
        start(config, tmp_path)


def test_captions_longer_than_its_positions_are_rejected(roberta, small_images, tmp_path):
    config = roberta_config(roberta, small_images)
    config.data.max_length = 13
    with pytest.raises(ValueError, match=r"data\.max_length=13, but .* has positions for 12 tokens"):
        start(config, tmp_path)


def test_without_weights_the_encoder_reads_compact_ids(small_images, tmp_path):
    config = small_run.get_config()
    config.data.root = str(small_images)
    config.objective.contrastive_weight = 0.5
    description = start(config, tmp_path).description
    assert description.model_settings.text_encoder["vocab_size"] == description.vocabulary.size
    encoded = description.text_tokenizer.encode(["a red box", "a zebra"])
    np.testing.assert_array_equal(encoded, description.vocabulary.encode_batch(["a red box", "a zebra"], 10))

"""Runs that initialise the decoder and the text encoder from the same RoBERTa."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from small_roberta import make_roberta_config, write_roberta

from caption_jax.models.roberta import Roberta
from caption_jax.pretrained.roberta_weights import PretrainedText
from caption_jax.runs.experiment import start_experiment
from caption_jax.runs.initial_variables import initial_variables
from caption_jax.specs import RunSpec


@pytest.fixture(scope="module", params=["msgpack", "torch safetensors"])
def roberta(request, tmp_path_factory) -> tuple[Path, PretrainedText]:
    """A folder with a random RoBERTa and its tokenizer, and the stored parameters."""
    folder = tmp_path_factory.mktemp("roberta")
    return folder, write_roberta(folder, request.param)


def make_config(folder: Path, small_images: Path) -> ConfigDict:
    config = make_roberta_config(folder, small_images)
    decoder = {"weights": str(folder), "layers": 1, "width": 8, "heads": 2, "feed_forward": 12}
    config.model.decoder.update({**decoder, "norm": "post", "norm_epsilon": 1e-5, "activation": "gelu"})
    return config


def test_the_decoder_has_the_stored_weights_and_the_log_lists_all_arrays(roberta, small_images, tmp_path, caplog):
    folder, pretrained = roberta
    experiment = start_experiment(RunSpec.from_config(make_config(folder, small_images)), epath.Path(tmp_path))
    description = experiment.description
    with caplog.at_level(logging.INFO):
        variables = initial_variables(experiment)

    ids = np.array([[0, 9, 300, 30, 2], [0, 5, 2, 1, 1]])
    features = description.model().apply(variables, ids, ids != 1, method="encode_texts")
    expected = Roberta(pretrained.sizes).apply({"params": pretrained.params}, ids, ids != 1)
    np.testing.assert_allclose(features.tokens[ids != 1], expected[ids != 1], atol=1e-5)

    decoder = traverse_util.flatten_dict(jax.device_get(variables["params"]["decoder"]), sep="/")
    reference = pretrained.params
    rows = description.vocabulary.to_full(range(description.vocabulary.size))
    assert len(rows) < pretrained.sizes.vocab_size
    np.testing.assert_array_equal(decoder["embedding"], reference["embeddings"]["word_embeddings"]["embedding"][rows])
    np.testing.assert_array_equal(decoder["output_bias"], pretrained.output_bias[rows])
    attention = reference["encoder"]["layer"]["0"]["attention"]
    for index, part in enumerate(("query", "key", "value")):
        columns = slice(8 * index, 8 * index + 8)
        kernel, bias = (decoder[f"layer_0/self_attention/qkv/{leaf}"] for leaf in ("kernel", "bias"))
        np.testing.assert_array_equal(kernel[:, columns], attention["self"][part]["kernel"])
        np.testing.assert_array_equal(bias[columns], attention["self"][part]["bias"])
    np.testing.assert_array_equal(
        decoder["layer_0/self_attention_norm/scale"], attention["output"]["LayerNorm"]["scale"]
    )
    expand = reference["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    np.testing.assert_array_equal(decoder["layer_0/feed_forward/expand/kernel"], expand)
    assert (decoder["layer_0/cross_attention_norm/scale"] == 1).all()

    assert "decoder: the first 1 of 2 layers of" in caplog.text
    lines = re.findall(r"arrays (copied|newly initialised): (.*)", caplog.text)
    logged = {origin: names.split(", ") for origin, names in lines}
    assert sorted(logged["copied"] + logged["newly initialised"]) == sorted(decoder), "each array is listed once"
    assert set(logged["newly initialised"]) == {path for path in decoder if "cross_attention" in path}


def test_incompatible_configs_are_rejected_before_anything_is_written(roberta, small_images, tmp_path):
    config = make_config(roberta[0], small_images)
    config.model.decoder.width = 16
    with pytest.raises(ValueError, match=r"config\.model\.decoder, width=8, not 16"):
        start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "run"))
    config = make_config(roberta[0], small_images)
    config.data.tokenizer, config.objective.contrastive_weight = "train", 0.0
    with pytest.raises(ValueError, match=r"decoder\.weights=.* vocabulary of \d+ tokens.*set config\.data\.tokenizer"):
        start_experiment(RunSpec.from_config(config), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()

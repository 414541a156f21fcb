"""configs/coco.py on eighty COCO photographs with RoBERTa tokens, from COCO JSON and from a TFDS copy."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from small_run import ROOT, shrink

from caption_jax.models import RobertaSettings, TextEncoder
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.initial_variables import init_variables
from caption_jax.runs.workdir import read_description
from caption_jax.specs import RunSpec
from caption_jax.telemetry.metrics_file import read_metrics
from caption_jax.training.loop import train_and_evaluate
from input_pipeline.data_spec import DataSpec
from input_pipeline.sources import open_splits
from input_pipeline.tokenizer import Tokenizer


def make_coco_config(shared_data: Path) -> ConfigDict:
    """Returns the config with local paths, random splits and a few steps."""
    spec = importlib.util.spec_from_file_location("coco_config", ROOT / "configs" / "coco.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.root = str(shared_data / "coco_mini")
    config.data.images = "images"
    config.data.captions = ("captions.json",)
    config.data.split_fractions.val = 0.05
    config.data.split_fractions.test = 0.05
    config.data.tokenizer = str(shared_data / "roberta-base-tokenizer")
    config.data.workers = 1
    config.data.batch_size = 8
    config.data.eval_batch_size = 4
    config.mesh.data = 1
    config.model.encoder.weights = ""
    config.model.encoder.norm_group_size = 8
    config.optimizer.warmup_steps = 1
    config.train.sample_images = 0
    config.train.steps = 4
    config.train.log_every = 2
    config.train.eval_every = 4
    config.train.checkpoint_every = 4
    return config


def shrink_coco_config(config: ConfigDict) -> ConfigDict:
    """Selects a small model and unfreezes its encoder after half of the steps. Returns the config."""
    shrink(config)
    config.data.image_size = 32
    norms, encoder, others = config.optimizer.rules
    config.optimizer.rules = (norms, (encoder[0], {**encoder[1], "from_step": 2}), others)
    return config


def load_weights(workdir: Path) -> dict[str, np.ndarray]:
    """Returns the variables of the last checkpoint by path."""
    return traverse_util.flatten_dict(jax.device_get(read_weights(workdir, "last").variables), sep="/")


def assert_completed(workdir: Path, steps: int) -> None:
    results = json.loads((workdir / "eval_val.json").read_text())
    assert results["step"] == steps and results["protocol"]["images"] == 4
    assert all(math.isfinite(value) for value in results["metrics"].values())
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row.split == "train"]
    assert [row.step for row in rows][-1] == steps
    assert all(math.isfinite(row.values["loss"]) for row in rows)
    assert np.isfinite([np.abs(array).max() for array in load_weights(workdir).values()]).all()


@pytest.fixture(scope="module")
def coco_json_run(shared_data, compile_cache, tmp_path_factory) -> tuple[Path, ConfigDict]:
    """The workdir and config of a run on COCO JSON."""
    workdir, config = tmp_path_factory.mktemp("coco") / "json", shrink_coco_config(make_coco_config(shared_data))
    train_and_evaluate(RunSpec.from_config(config), workdir)
    return workdir, config


@pytest.mark.slow
def test_training_and_evaluation_on_coco_json(coco_json_run):
    workdir, config = coco_json_run
    assert_completed(workdir, steps=4)
    vocabulary = read_description(workdir).vocabulary
    # The untrained model predicts a nearly uniform distribution over the vocabulary.
    first_row = next(row for row in read_metrics(workdir / "metrics.jsonl") if row.split == "train")
    assert first_row.values["loss"] == pytest.approx(math.log(vocabulary.size), rel=0.15)
    assert 500 < vocabulary.size < 2000  # 360 captions use only some of RoBERTa's 50,265 tokens
    assert vocabulary.to_full(vocabulary.encode("a man", 6)).tolist()[-2:] == [1, 1]
    caption = open_splits(DataSpec.from_config(config.data))["train"][0].captions[0]
    assert vocabulary.decode(vocabulary.encode(caption, 40)) == caption.lower().strip()


@pytest.mark.slow
def test_the_encoder_is_unfrozen_except_its_norms(coco_json_run):
    workdir, _ = coco_json_run
    initial = init_variables(read_description(workdir))
    before = traverse_util.flatten_dict(jax.device_get(initial), sep="/")
    after = load_weights(workdir)
    unchanged = {path for path in before if np.array_equal(before[path], after[path])}
    backbone = {path for path in before if path.startswith("params/image_encoder/backbone/")}
    norms = {path for path in backbone if path.endswith(("norm/scale", "norm/bias"))}
    assert norms <= unchanged and not (backbone - norms) & unchanged
    # Frozen norms use stored statistics in both training phases.
    assert {path for path in before if path.startswith("batch_stats/")} <= unchanged


@pytest.mark.slow
def test_training_on_a_tfds_copy_gives_identical_weights(coco_json_run, shared_data, tmp_path):
    from input_pipeline.sources.prepare_tfds import prepare

    workdir, config = coco_json_run
    json_splits = open_splits(DataSpec.from_config(config.data))
    prepare(json_splits, "coco_mini", tmp_path / "tfds")
    tfds_config = shrink_coco_config(make_coco_config(shared_data))
    tfds_config.data.source = "tfds"
    tfds_config.data.tfds_name = "coco_mini"
    tfds_config.data.tfds_dir = str(tmp_path / "tfds")
    tfds_splits = open_splits(DataSpec.from_config(tfds_config.data))
    assert {name: split.references for name, split in tfds_splits.items()} == {
        name: split.references for name, split in json_splits.items()
    }
    train_and_evaluate(RunSpec.from_config(tfds_config), tmp_path / "run")
    assert_completed(tmp_path / "run", steps=4)
    expected, actual = load_weights(workdir), load_weights(tmp_path / "run")
    assert expected.keys() == actual.keys()
    for path in expected:
        np.testing.assert_array_equal(actual[path], expected[path], err_msg=path)


@pytest.mark.long
def test_the_full_size_config_trains(shared_data, compile_cache, tmp_path):
    """EfficientNet-B0 at 224 x 224, a decoder of 6 layers of width 512, and a text encoder as large as roberta-base."""
    config = make_coco_config(shared_data)
    config.objective.contrastive_weight = 0.5
    config.model.text_encoder.update({"layers": 12, "width": 768, "heads": 12, "feed_forward": 3072})
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2
    config.train.log_every = 1
    train_and_evaluate(RunSpec.from_config(config), tmp_path / "run")
    assert_completed(tmp_path / "run", steps=2)
    shapes = {path: array.shape for path, array in load_weights(tmp_path / "run").items()}
    assert shapes["params/decoder/layer_5/feed_forward/expand/kernel"] == (512, 2048)
    assert sum(path.endswith("/conv/kernel") for path in shapes if "backbone" in path) > 40
    layer = "params/text_encoder/roberta/encoder/layer/11"
    assert shapes[f"{layer}/intermediate/dense/kernel"] == (768, 3072)
    (first, *_, last) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert math.isfinite(first.values["contrastive_loss"]) and "image_to_text_R@10" in last.values


@pytest.mark.slow
def test_a_text_encoder_of_roberta_base_size_encodes_captions(shared_data):
    tokenizer = Tokenizer.from_folder(shared_data / "roberta-base-tokenizer")
    settings = RobertaSettings(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
    )
    assert (settings.num_hidden_layers, settings.hidden_size, settings.num_attention_heads) == (12, 768, 12)
    sequences = tokenizer.encode_batch(["Two dogs run.", "A very old kettle stands on the table."])
    length = max(map(len, sequences))
    ids = np.array([sequence + [1] * (length - len(sequence)) for sequence in sequences], np.int32)
    encoder = TextEncoder(settings, width=512)
    variables = jax.jit(encoder.init)(jax.random.key(0), ids, ids != 1)
    features = jax.jit(encoder.apply)(variables, ids, ids != 1)
    assert features.tokens.shape == (2, length, 768) and features.vector.shape == (2, 512)
    assert np.isfinite(features.vector).all()
    parameter_count = sum(array.size for array in jax.tree.leaves(variables["params"]["roberta"]))
    assert parameter_count == 124_055_040  # roberta-base without the pooler

"""Retrieved context in training, evaluation and captioning."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from etils import epath
from ml_collections import ConfigDict
from quick_compilation import QUICK_COMPILATION
from resume_run import assert_same_state, list_saved_steps

import caption_jax
from caption_jax.config import default_config
from caption_jax.metrics import read_results
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.objectives.total_objective import make_objectives
from caption_jax.parameters.paths import flatten
from caption_jax.parameters.sharding import make_mesh, put_batch, replicated
from caption_jax.retrieval.context_captions import open_context
from caption_jax.retrieval.neighbours import read_neighbours
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.description import TextTokenizer
from caption_jax.runs.experiment import Experiment, open_experiment, start_experiment
from caption_jax.runs.workdir import read_spec
from caption_jax.specs import ModelSpec, RunSpec, build_spec
from caption_jax.telemetry.metrics_file import read_metrics
from caption_jax.training.loop import train_and_evaluate
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.state import create_state
from caption_jax.training.step import TrainStep
from input_pipeline.block_layout import BlockLayout
from input_pipeline.images import Preprocessing
from input_pipeline.packing import pack_blocks
from input_pipeline.records import DataError, Split
from input_pipeline.special_tokens import PAD

FROZEN = r"image_encoder/backbone/(stem|stage_[12])/.*"
STEPS = 40


@pytest.fixture(scope="module")
def index(searchable_workdir, tmp_path_factory) -> Path:
    """The folder of an index of the training images, with the neighbours of the training and validation images."""
    folder = tmp_path_factory.mktemp("index")
    flags = (f"--workdir={searchable_workdir}", f"--index={folder}")
    assert small_run.run_main("--mode=index", *flags, "--split=train", "--captions=none") == 0
    for split in ("train", "val"):
        assert small_run.run_main("--mode=neighbours", *flags, f"--split={split}", "--top=3") == 0
    return folder


def make_config(index: Path, images: Path) -> ConfigDict:
    """Returns a config with context, stored features, gradient accumulation and averaged weights."""
    config = small_run.get_config()
    config.data.root, config.data.context = str(images), str(index)
    config.data.feature_cache.stage = "stage_2"
    config.model.context.update({"max_texts": 2, "form": "tokens", "dropout": 0.3})
    config.model.text_encoder.update({"layers": 1, "width": 16, "heads": 2, "feed_forward": 32})
    config.optimizer.rules = ((FROZEN, {"lr": 0.0}), (f"(?!{FROZEN}).*", {"lr": 1.0}))
    config.optimizer.update({"grad_accum_steps": 2, "ema": 0.9})
    config.train.update({"steps": STEPS, "log_every": 10, "eval_every": STEPS, "checkpoint_every": 25})
    return config


@pytest.fixture(scope="module")
def workdir(index, distinct_images, tmp_path_factory) -> Path:
    """The workdir of a run trained with context."""
    folder = tmp_path_factory.mktemp("runs") / "context"
    train_and_evaluate(RunSpec.from_config(make_config(index, distinct_images)), folder)
    return folder


def open_run(workdir: Path) -> Experiment:
    return open_experiment(epath.Path(workdir), read_spec(workdir))


@pytest.mark.slow
def test_the_context_of_an_image_does_not_contain_its_captions(workdir, index, distinct_images):
    neighbours_by_id = read_neighbours(index, "train")
    assert len(neighbours_by_id) == 8
    assert all(len(neighbours) == 3 and image_id not in neighbours for image_id, neighbours in neighbours_by_id.items())
    # 08.png is a copy of 00.png and has the same captions.
    copies = (distinct_images / "images" / name for name in ("00.png", "08.png"))
    assert len({path.read_bytes() for path in copies}) == 1
    assert "00.png" not in read_neighbours(index, "val")["08.png"]
    for kind in ("retrieved", "shuffled"):
        context, split = open_context(open_run(workdir), "train", kind), open_run(workdir).split("train")
        vocabulary = open_run(workdir).description.vocabulary
        for record in split:
            texts = {vocabulary.decode(ids) for epoch in range(8) for ids in context.load(record.image_id, 0, epoch)}
            assert len(texts) > 2 and not texts & {caption.lower() for caption in record.captions}, kind


@pytest.mark.slow
def test_training_and_validation_use_context(workdir):
    metrics = [entry.values for entry in read_metrics(workdir / "metrics.jsonl") if entry.split == "train"]
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"] and "contrastive_loss" not in metrics[0]
    evaluation = json.loads((workdir / "eval_val.json").read_text())
    assert evaluation["protocol"]["context"] == "retrieved" and "image_to_text_R@1" not in evaluation["metrics"]
    assert (workdir / "report_val.html").read_text().count("<img") > 4


@pytest.mark.slow
def test_a_resumed_run_matches_an_uninterrupted_run(workdir, tmp_path):
    copy = Path(shutil.copytree(workdir, tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / "last" / str(list_saved_steps(copy)[-1]))
    assert list_saved_steps(copy) == [25]
    train_and_evaluate(read_spec(copy), copy)
    assert_same_state(copy, workdir)


@pytest.mark.slow
def test_evaluations_with_no_or_shuffled_context_write_separate_files(workdir, capsys):
    original = (workdir / "eval_val.json").read_text()
    losses = {}
    for kind in ("none", "shuffled"):
        assert small_run.run_main("--mode=evaluate", f"--workdir={workdir}", f"--context={kind}") == 0
        assert f"val split: 2 images (real, context {kind})" in capsys.readouterr().out
        evaluation = json.loads((workdir / f"eval_val_context_{kind}.json").read_text())
        assert evaluation["protocol"]["context"] == kind
        losses[kind] = evaluation["metrics"]["loss"]
        assert list(read_results(workdir / f"captions_val_context_{kind}.json")) == ["08.png", "09.png"]
    losses["retrieved"] = json.loads(original)["metrics"]["loss"]
    assert len(set(losses.values())) == 3
    assert (workdir / "eval_val.json").read_text() == original
    assert not list(workdir.glob("report_val_*"))
    with pytest.raises(ValueError, match="context is 'random'; it must be one of retrieved, none, shuffled"):
        small_run.run_main("--mode=evaluate", f"--workdir={workdir}", "--context=random")


@pytest.mark.slow
def test_shuffled_context_is_the_context_of_the_next_image(workdir):
    experiment = open_run(workdir)
    retrieved, shuffled = (open_context(experiment, "val", kind) for kind in ("retrieved", "shuffled"))
    np.testing.assert_array_equal(shuffled.load("08.png"), retrieved.load("09.png"))
    np.testing.assert_array_equal(shuffled.load("09.png"), retrieved.load("08.png"))
    assert open_context(experiment, "val", "none") is None


@pytest.mark.slow
def test_captions_depend_on_the_context_texts(workdir, distinct_images, capsys):
    path = distinct_images / "images" / "10.png"
    captioner = caption_jax.load(str(workdir))
    texts = ["a yellow box on the right"]
    log_prob, log_prob_without_context = (captioner.caption([path], [context])[0].log_prob for context in (texts, []))
    captions = captioner.caption([path, path], [[*texts, ""], []])
    assert abs(log_prob - log_prob_without_context) > 1e-3
    expected = pytest.approx([log_prob, log_prob_without_context], abs=1e-4)
    assert [caption.log_prob for caption in captions] == expected
    arguments = ["--mode=caption", f"--workdir={workdir}", "--format=jsonl", path]
    assert small_run.run_main(*arguments, "--context=a yellow box on the right", "--context=") == 0
    assert small_run.run_main(*arguments) == 0
    assert [json.loads(line)["log_prob"] for line in capsys.readouterr().out.splitlines()] == expected
    with pytest.raises(ValueError, match=r"3 context texts, but this run's model accepts at most 2 \(config"):
        captioner.caption([path], [["a", "b", "c"]])
    with pytest.raises(TypeError, match="context takes a list of texts for each image"):
        captioner.caption([path], ["a title"])
    with pytest.raises(ValueError, match="one list of texts per image, got 2 for 1 images"):
        captioner.caption([path], [["a"], ["b"]])


def test_a_model_without_context_rejects_context_texts(small_workdir, small_images):
    with pytest.raises(ValueError, match=r"this run's model accepts at most 0"):
        caption_jax.load(str(small_workdir)).caption([small_run.box_image()], [["a title"]])
    with pytest.raises(ValueError, match=r"this run's model takes none \(config\.model\.context\.max_texts=0\)"):
        small_run.run_main("--mode=evaluate", f"--workdir={small_workdir}", "--context=retrieved")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.context": ""}, r"context\.max_texts=2 requires context captions: set config\.data\.context"),
        ({"model.context.max_texts": -1}, r"context\.max_texts is -1"),
        ({"model.context.dropout": 1.0}, r"context\.dropout is 1\.0"),
    ],
)
def test_invalid_context_settings_are_rejected(index, distinct_images, tmp_path, changes, message):
    config = make_config(index, distinct_images)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        start_experiment(RunSpec.from_config(config), epath.Path(tmp_path))


@pytest.mark.slow
def test_an_image_without_stored_neighbours_is_rejected(workdir, index, tmp_path):
    folder = Path(shutil.copytree(index, tmp_path / "index"))
    lines = (folder / "neighbours-val.jsonl").read_text().split("\n")
    (folder / "neighbours-val.jsonl").write_text("\n".join(line for line in lines if '"id": "09.png"' not in line))
    experiment = open_run(workdir)
    spec = experiment.spec
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, context=str(folder)))
    description = dataclasses.replace(experiment.description, spec=spec)
    experiment = dataclasses.replace(experiment, description=description)
    with pytest.raises(DataError, match=r"no neighbours of image 09\.png of the split 'val'"):
        open_context(experiment, "val", "retrieved")


BATCH_SIZE, MAX_TEXTS, MAX_LENGTH, VOCABULARY_SIZE = 8, 2, 10, 30


def make_small_captioner():
    """Returns a config, the model with context, and randomly initialised variables."""
    config = default_config()
    small_run.shrink(config)
    config.dtype = "float32"
    config.model.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8, "dropout": 0.0})
    config.model.context.update({"max_texts": MAX_TEXTS, "form": "tokens"})
    config.optimizer.update({"name": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "clip_norm": 0.0})
    config.model.encoder.norm_group_size = 1
    settings = roberta_settings(config.model.text_encoder, VOCABULARY_SIZE, MAX_LENGTH, PAD)
    spec = build_spec(ModelSpec, config.model)
    model = build_model(spec, VOCABULARY_SIZE, MAX_LENGTH, text_encoder=settings, joint_embedding=False)
    rng = np.random.default_rng(0)
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 1, MAX_LENGTH - 1), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
    variables = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    return config, model, variables


@pytest.mark.slow
def test_logits_depend_only_on_the_captions_of_neighbours(workdir):
    """Changes the captions of one training image. Decoder inputs are fixed."""
    experiment = open_run(workdir)
    split, spec = experiment.split("train"), experiment.spec
    context = open_context(experiment, "train", "retrieved")
    changed_id = split[3].image_id
    records = [
        dataclasses.replace(record, captions=("the right", "on a box")) if record.image_id == changed_id else record
        for record in split
    ]
    changed = dataclasses.replace(experiment, splits={**experiment.splits, "train": Split("train", records)})
    changed_context = open_context(changed, "train", "retrieved")
    neighbours = read_neighbours(spec.data.context, "train")
    affected = [image_id for image_id in split.image_ids if changed_id in neighbours[image_id][:2]]
    assert affected and changed_id not in affected
    vocabulary, model = experiment.description.vocabulary, experiment.model()
    tokens = np.stack([vocabulary.encode_batch(record.captions, MAX_LENGTH) for record in split])
    variables = read_weights(workdir).variables
    images = ImageFeatures(jnp.asarray(np.random.default_rng(0).normal(size=(len(split), 4, 16)), jnp.float32), None)

    @jax.jit
    def compute_logits(ids):
        features = model.apply(variables, images, ids, ids != PAD, method="add_context")
        return model.apply(variables, tokens[..., :-1], features, method="decode").logits

    logits, changed_logits = (
        np.asarray(compute_logits(np.stack([captions.load(record.image_id) for record in split])))
        for captions in (context, changed_context)
    )
    for row, record in enumerate(split):
        if record.image_id in affected:
            assert np.abs(changed_logits[row] - logits[row]).max() > 1e-6
        else:
            np.testing.assert_array_equal(changed_logits[row], logits[row])


@pytest.mark.slow
@pytest.mark.parametrize(("microbatches", "packing"), [(1, "never"), (2, "never"), (2, "blocks")])
def test_a_training_step_on_eight_devices_matches_one_device(microbatches, packing):
    """With SGD, differences between parameters are proportional to differences between gradients."""
    config, model, variables = make_small_captioner()
    config.optimizer.grad_accum_steps = microbatches
    config.data.context = "no/index"  # required by the spec, but unused because the batch contains context
    spec = RunSpec.from_config(config)
    batch_size = BATCH_SIZE * microbatches
    optimizer, _ = make_optimizer(spec.optimizer, variables["params"], 10)
    rng = np.random.default_rng(1)
    context = rng.integers(4, VOCABULARY_SIZE, (batch_size, MAX_TEXTS, MAX_LENGTH)).astype(np.int32)
    context[2] = context[5, 1] = context[6, 0, 4:] = 1
    batch = {
        "image": rng.integers(0, 255, (batch_size, 32, 32, 3)).astype(np.uint8),
        "tokens": rng.integers(4, VOCABULARY_SIZE, (batch_size, 2, MAX_LENGTH)).astype(np.int32),
        "context": context,
        "mask": np.ones(batch_size, bool),
        "index": np.arange(batch_size, dtype=np.int32),
    }
    results = []
    for devices in (1, 8):
        mesh = make_mesh(ConfigDict({"data": devices, "model": 1}), jax.devices()[:devices])
        objectives = make_objectives(spec.objective, joint_embedding=False)
        train_step = TrainStep(
            model,
            optimizer,
            Preprocessing(32),
            spec,
            frozenset(),
            objectives,
            text_ids=TextTokenizer(None, False, MAX_LENGTH).from_caption_ids,
            mesh=mesh,
        )
        state = jax.device_put(create_state(variables, optimizer, averaged=False), replicated(mesh))
        packed = dict(batch)
        if packing == "blocks" and devices > 1:  # each image needs an extra block
            layout = BlockLayout(MAX_LENGTH - 1, extra=batch_size // devices)
            packed |= pack_blocks(batch["tokens"], batch["mask"], devices, layout, microbatches)
        compiled = jax.jit(train_step).lower(state, put_batch(packed, mesh)).compile(QUICK_COMPILATION)
        results.append(jax.device_get(compiled(state, put_batch(packed, mesh))))
    (state, metrics), (sharded_state, sharded_metrics) = results
    for name in metrics:
        np.testing.assert_allclose(sharded_metrics[name], metrics[name], rtol=1e-5, atol=1e-5, err_msg=name)
    initial_params = flatten(variables["params"])
    for path, value in flatten(state.params).items():
        np.testing.assert_allclose(flatten(sharded_state.params)[path], value, rtol=0, atol=1e-5, err_msg=path)
    for path in ("text_encoder/roberta/embeddings/word_embeddings/embedding", "context/dense/kernel"):
        assert np.abs(flatten(state.params)[path] - np.asarray(initial_params[path])).max() > 1e-4, path

"""`--mode=soup`: averages of weights, the greedy choice, norm statistics, and the run that is written."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from random_model import write_random_model
from small_run import ROOT, run_main

import caption_jax
from caption_jax.errors import ConfigError, MissingFileError, WorkdirError
from caption_jax.evaluation.norm_statistics import NormStatistics, combine, find_differences
from caption_jax.evaluation.soup import choose_greedily
from caption_jax.evaluation.weight_averages import WeightAverages, check_same_model, find_sources
from caption_jax.runs.artifact import write_artifact, write_pointer
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.loading import read_model
from caption_jax.runs.soup_record import FILE_NAME, read_record
from caption_jax.runs.weights import Weights, flatten_arrays
from caption_jax.runs.workdir import read_spec, write_description
from caption_jax.specs import RunSpec, as_mapping

SOUP_FLAGS = ("--split=train", "--config.data.eval_batch_size=8")


def write_variant(source, workdir, step: int, offset: float, *, changes_norms: bool = False) -> str:
    """Writes a run whose weights are those of another run plus fixed noise, times `offset`. Returns its workdir."""
    model = read_model(source)
    rng = np.random.default_rng(0)

    def move(array: np.ndarray) -> np.ndarray:
        return array + np.float32(offset) * rng.normal(size=array.shape).astype(np.float32)

    variables = {**model.weights.variables, "params": jax.tree.map(move, model.weights.variables["params"])}
    if changes_norms:
        variables["batch_stats"] = jax.tree.map(lambda a: a * np.float32(1 + offset), variables["batch_stats"])
    folder = epath.Path(workdir)
    write_description(folder, model.description)
    write_pointer(folder, write_artifact(folder, model.description, Weights(variables, step)))
    return str(workdir)


@pytest.fixture(scope="module")
def runs(small_workdir, tmp_path_factory):
    """Workdirs: a trained model, two models on opposite sides of it, and a bad one."""
    folder = tmp_path_factory.mktemp("models")
    names = {"left": (170, 0.02), "right": (180, -0.02), "bad": (190, 2.0)}
    variants = {name: write_variant(small_workdir, folder / name, *values) for name, values in names.items()}
    return {"center": str(small_workdir), **variants}


def make_soup(workdir, *arguments: str) -> dict:
    """Runs the subcommand; returns the contents of soup.json."""
    assert run_main("soup", f"--workdir={workdir}", *SOUP_FLAGS, *arguments) == 0
    return json.loads((workdir / FILE_NAME).read_text())


def test_the_uniform_average_of_opposite_models_is_their_center(runs, tmp_path, capsys):
    record = make_soup(tmp_path / "soup", runs["left"], runs["right"], "--recipe=uniform")
    output = capsys.readouterr().out
    assert "uniform average of 2 models: CIDEr-D " in output and "equal in all models" in output
    center, average = (read_model(folder).weights for folder in (runs["center"], tmp_path / "soup"))
    assert average.step == 180 and not record["trials"]
    for path, array in flatten_arrays(center.variables).items():
        np.testing.assert_allclose(flatten_arrays(average.variables)[path], array, atol=1e-6)
    assert [(item["name"], item["step"], item["is_used"]) for item in record["ingredients"]] == [
        (runs["left"], 170, True),
        (runs["right"], 180, True),
    ]


@pytest.mark.slow
def test_the_greedy_soup_leaves_out_a_bad_model_and_is_an_ordinary_run(runs, small_images, tmp_path, capsys):
    soup = tmp_path / "soup"
    record = make_soup(soup, runs["bad"], runs["left"], runs["right"])
    output = capsys.readouterr().out
    assert [item["is_used"] for item in record["ingredients"]] == [False, True, True]
    *_, last = record["trials"]
    assert last["name"] == runs["bad"] and not last["is_kept"] and last["score"] < record["score"]
    assert f"{runs['bad']}" in output and "left out" in output and "greedy average of 2 models" in output
    assert record["score"] == max(trial["score"] for trial in record["trials"] if trial["is_kept"])

    assert run_main("evaluate", f"--workdir={soup}", *SOUP_FLAGS) == 0
    assert (
        f"weights: greedy average of {runs['left']} (step 170), {runs['right']} (step 180)" in capsys.readouterr().out
    )
    evaluation = json.loads((soup / "eval_train.json").read_text())
    assert evaluation["metrics"]["CIDEr-D"] == pytest.approx(record["score"])
    assert "greedy average of" in (soup / "report_train.html").read_text()
    image = small_images / "images" / "00.png"
    assert run_main("caption", f"--workdir={soup}", image) == 0
    assert "box" in capsys.readouterr().out
    train = ["train", f"--config={ROOT / 'tests' / 'small_run.py'}", f"--config.data.root={small_images}"]
    train += ["--config.train.steps=2"]
    assert run_main(*train, f"--workdir={tmp_path / 'next'}", f"--config.init_from={soup}") == 0
    with pytest.raises(WorkdirError, match=rf"--config.init_from={soup} to start from this model"):
        run_main(*train, f"--workdir={soup}")
    with pytest.raises(WorkdirError, match="already holds a run: set --workdir to a new folder"):
        make_soup(soup, runs["left"], runs["right"])


@pytest.mark.slow
def test_a_soup_that_was_killed_while_it_was_written_can_be_made_again(runs, tmp_path):
    soup = tmp_path / "soup"
    expected = make_soup(soup, runs["left"], runs["right"], "--recipe=uniform")
    (soup / "best_model.json").unlink()  # written last
    (soup / "model-180" / "manifest.json").unlink()
    record = make_soup(soup, runs["left"], runs["right"], "--recipe=uniform")
    assert record["score"] == expected["score"] and read_model(soup).weights.step == 180


def test_all_saved_weights_of_a_run_are_named_by_all(small_workdir, tmp_path):
    workdir = shutil.copytree(small_workdir, tmp_path / "run")
    sources = find_sources([f"{workdir}@all", f"{workdir}@150"])
    assert [str(source) for source in sources] == [f"{workdir}@150", f"{workdir}@160", f"{workdir}@150"]
    record = make_soup(tmp_path / "soup", f"{workdir}@all")
    assert [item["step"] for item in record["ingredients"]] == [150, 160]
    assert "computed from 8 training images" in record["norms"]
    (tmp_path / "run@7").mkdir()
    assert [str(source) for source in find_sources([f"{tmp_path}/run@7"])] == [f"{tmp_path}/run@7"]  # a folder
    with pytest.raises(ConfigError, match="has no saved weights"):
        find_sources([f"{tmp_path}@all"])


def test_the_greedy_choice_follows_the_paper():
    scores = [0.3, 0.5, 0.4, 0.1]
    averages = {(1, 2): 0.5, (1, 2, 0): 0.45, (1, 2, 3): 0.6}
    trials, used = choose_greedily(scores, averages.__getitem__)
    assert trials == ((1, 0.5, True), (2, 0.5, True), (0, 0.45, False), (3, 0.6, True))
    assert used == (1, 2, 3)


def test_averages_are_exact_and_read_each_model_once():
    rng = np.random.default_rng(0)
    weights = [{"params": {"a": rng.normal(size=(3, 2)).astype(np.float32)}} for _ in range(4)]
    read = []
    averages = WeightAverages(lambda index: read.append(index) or weights[index])
    for indices in ((0,), (0, 1), (0, 2), (0, 2, 3)):
        expected = np.mean([weights[index]["params"]["a"].astype(np.float64) for index in indices], 0)
        np.testing.assert_array_equal(averages.mean(indices)["params"]["a"], expected.astype(np.float32))
    assert read == [0, 1, 2, 3]
    same = WeightAverages(lambda index: weights[0])
    np.testing.assert_array_equal(same.mean((0, 1, 2))["params"]["a"], weights[0]["params"]["a"])


@pytest.mark.slow
def test_norm_statistics_are_those_of_the_training_images(runs, small_workdir, tmp_path):
    other = write_variant(small_workdir, tmp_path / "other", 170, 0.1, changes_norms=True)
    models = [read_model(folder) for folder in (small_workdir, other)]
    norms = find_differences(*(model.weights.variables for model in models))
    assert len(norms) > 3 and all(path.startswith("image_encoder/backbone/") for path in norms)
    spec = read_spec(small_workdir)
    values = as_mapping(spec)
    values["data"]["eval_batch_size"] = 8  # all training images
    experiment = open_experiment(epath.Path(small_workdir), RunSpec.from_config(values))
    statistics = NormStatistics(experiment, norms)
    variables = statistics.update(models[1].weights.variables)
    description = experiment.description
    pixels = np.stack([description.preprocessing.load(record.source()) for record in experiment.split("train")])
    images, model = description.preprocessing.normalise(pixels), description.model()
    # With the statistics of these very images, a norm does the same in evaluation as in training.
    options = {"method": "encode_images", "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}

    def encode(module, images, train):
        return module.image_encoder.backbone(images, train=train)

    in_training, _ = model.apply(variables, images, True, method=encode, mutable=options["mutable"])
    np.testing.assert_allclose(model.apply(variables, images, False, method=encode), in_training, rtol=1e-3, atol=1e-3)
    assert not np.allclose(
        model.apply(models[1].weights.variables, images, False, method=encode), in_training, rtol=0.1
    )
    kept = statistics.images, variables["params"]
    assert kept == (8, models[1].weights.variables["params"])


def test_statistics_of_batches_are_combined():
    values = np.random.default_rng(0).normal(size=(4, 50, 3)) + np.arange(4)[:, None, None]
    mean, var = combine(list(values.mean(1)), list(values.var(1)))
    np.testing.assert_allclose(mean, values.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(var, values.var((0, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("decoder.heads", 4, r"config.model.decoder.heads is 2 in runs/a and 4 in runs/b"),
        ("decoder.norm", "post", r"config.model.decoder.norm is 'pre' in runs/a and 'post' in runs/b"),
        ("decoder.dropout", 0.3, ""),
        ("encoder.norm_momentum", 0.5, ""),
    ],
)
def test_models_of_different_architectures_are_rejected(key, value, pattern, small_workdir):
    first = read_model(small_workdir).description
    values = as_mapping(first.spec)
    section, name = key.split(".")
    values["model"][section][name] = value
    second = type(first)(RunSpec.from_config(values), first.model_settings, first.preprocessing, first.vocabulary)
    if not pattern:
        check_same_model(first, second, "runs/a", "runs/b")  # affects only training
        return
    with pytest.raises(ConfigError, match=pattern):
        check_same_model(first, second, "runs/a", "runs/b")


def test_wrong_models_are_rejected_before_anything_is_written(runs, tmp_path):
    write_random_model(tmp_path / "tokens", captions=("one dog runs", "two cats sleep"))
    for arguments, error, pattern in (
        ([runs["left"], str(tmp_path / "tokens")], ConfigError, "soup combines models with the same tokenizer, but "),
        ([runs["left"], runs["left"]], ConfigError, "have the same weights: name each model once"),
        ([runs["left"], str(tmp_path / "missing")], MissingFileError, "missing/config.json is missing"),
        ([runs["left"], runs["right"], "--split=test"], ConfigError, "cannot choose models on the test split"),
    ):
        with pytest.raises(error, match=pattern):
            run_main("soup", f"--workdir={tmp_path / 'soup'}", *arguments)
    assert not (tmp_path / "soup" / "config.json").exists()


def test_a_damaged_record_is_reported_with_the_file(runs, tmp_path):
    shutil.copytree(runs["left"], tmp_path / "run")
    assert read_record(epath.Path(tmp_path / "run")) is None
    for content in ("{", "[]", '{"ingredients": [], "trials": []}', '{"ingredients": [3], "trials": []}'):
        (tmp_path / "run" / FILE_NAME).write_text(content)
        with pytest.raises(WorkdirError, match=r"soup\.json is damaged"):
            read_record(epath.Path(tmp_path / "run"))
    assert caption_jax.load(tmp_path / "run")  # captioning does not read it

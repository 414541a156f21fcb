"""Planning a run for devices that are not attached, without its data."""

from __future__ import annotations

import importlib.util
import json

import pytest
from ml_collections import ConfigDict
from small_run import ROOT, WITH_TEXT_ENCODER, get_config, quick_compilation, run_main

from caption_jax.planning.plan import Request, plan
from caption_jax.planning.table import print_plan
from caption_jax.specs import RunSpec

CONFIG = f"--config={ROOT / 'tests' / 'small_run.py'}"
FROZEN_FIRST = (
    (r"image_encoder/.*norm/(scale|bias)", {"lr": 0.0}),
    (r"(?!image_encoder/.*norm/(scale|bias)).*kernel", {"lr": 1.0, "from_step": 7}),
    (r"(?!image_encoder/.*norm/(scale|bias))(?!.*kernel).*", {"lr": 1.0}),
)


def make_config(**changes) -> ConfigDict:
    config = get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"mesh.data": -1, **changes})
    return config


def planned(tmp_path, request, **changes):
    with quick_compilation():
        return plan(RunSpec.from_config(make_config(**changes)), tmp_path, request)


@pytest.fixture
def workdir(tmp_path):
    from etils import epath

    return epath.Path(tmp_path)


def test_main_prints_and_writes_a_plan(tmp_path, capsys):
    options = ("--programs=train,decode", "--images_per_chip=2", "--vocabulary=290", *WITH_TEXT_ENCODER)
    more = ("--config.mesh.data=-1", "--config.data.root=nowhere", "--config.model.encoder.norm_group_size=2")
    arguments = (CONFIG, f"--workdir={tmp_path}", "--mode=plan", "--topology=cpu:8", *options, *more)
    assert run_main(*arguments) == 0
    printed, stored = capsys.readouterr().out, json.loads((tmp_path / "plan_cpu_8.json").read_text())
    assert stored["chips"] == 8 and stored["mesh"] == {"data": 8, "model": 1} and stored["dtype"] == "float32"
    assert stored["assumed"]["vocabulary"] == 290 and "assumed vocabulary: 290" in printed
    train = stored["programs"]["train"]
    assert train["images_per_chip"] == 2 and train["memory"]["total"] > train["memory"]["arguments"] > 0
    assert train["per_image"]["matrix_flops"] > 0
    # Every device reduces gradients and metrics, and gathers all vectors of the contrastive objective.
    assert {group["axis"] for group in train["collectives"]} == {"data"}
    gathers = [group for group in train["collectives"] if group["kind"] == "all-gather"]
    width = 16
    assert gathers and sum(group["bytes"] for group in gathers) >= 16 * 2 * width * 4
    reductions = next(group for group in train["collectives"] if group["kind"] == "all-reduce")
    assert reductions["bytes"] >= 4 * stored["parameters"]["trained"]
    assert (
        train["rows_like_weights"] and "as many rows as the global batch" in printed
    )  # 16 images, and a text encoder of width 16
    assert "all-gather (data)" in printed and "decode: 2 images per chip" in printed


@pytest.mark.slow
def test_a_run_in_bfloat16_encodes_and_decodes_without_float32_products(workdir, capsys):
    """Parameters, norms and sums are float32, but operands are bfloat16, except in attention gradients."""
    request = Request("cpu:1", ("encoder", "decode"), images=2)
    result = planned(workdir, request, **{"mesh.data": 1, "dtype": "bfloat16"})
    for program in result["programs"].values():
        assert set(program["per_image"]["matrix_flops_by_dtype"]) == {"bf16"}
    print_plan(result)
    assert "by operand type            bf16" in capsys.readouterr().out


@pytest.mark.slow
def test_phases_of_unfreezing_are_selected_by_a_step(workdir):
    changes = {"optimizer.rules": FROZEN_FIRST, "mesh.data": 1, "optimizer.ema": 0.9}
    first = planned(workdir, Request("cpu:1", ("encoder",), "first", 2, 290), **changes)
    early = planned(workdir, Request("cpu:1", (), "6", 2, 290), **changes)
    late = planned(workdir, Request("cpu:1", ("encoder",), "7", 7, 290), **changes)  # no weights have 7 rows
    last = planned(workdir, Request("cpu:1", (), "last", 2, 290), **changes)
    assert late["phase"]["starts"] == [0, 7] and not late["programs"]["encoder"]["rows_like_weights"]
    assert first["parameters"] == early["parameters"] != late["parameters"] == last["parameters"]
    flops = [result["programs"]["encoder"]["per_image"]["analytic_matrix_flops"] for result in (first, late)]
    assert flops[0] < 0.7 * flops[1]  # frozen convolutions have no gradients
    everything = planned(workdir, Request("cpu:1", (), "all", 2, 290), **changes)
    assert everything["parameters"]["trained"] == everything["parameters"]["all"] > last["parameters"]["trained"]
    with pytest.raises(ValueError, match="--phase='end'"):
        planned(workdir, Request("cpu:1", (), "end"), **changes)


def test_a_trained_workdir_provides_its_vocabulary(small_workdir, workdir):
    from etils import epath

    result = planned(epath.Path(small_workdir), Request("cpu:1", (), images=2))
    assert list(result["assumed"]) == ["packing"]
    assert planned(workdir, Request("cpu:1", (), images=2))["assumed"]["vocabulary"] == 300


def test_incompatible_arguments_are_rejected(workdir):
    with pytest.raises(ValueError, match="batch_size=4 images cannot be divided over 8 devices"):
        planned(workdir, Request("cpu:8", ("train",)))
    with pytest.raises(ValueError, match="unknown program eval; expected some of train, decode, encoder"):
        planned(workdir, Request("cpu:8", ("eval",)))


def test_a_batch_that_the_backbone_does_not_support_is_rejected_before_compilation(workdir):
    groups = {"model.encoder.norm_group_size": 6, "mesh.data": 1}
    for programs in (("decode", "train"), ("encoder",)):
        with pytest.raises(ValueError, match="norm_group_size=6 does not divide the 4 images"):
            planned(workdir, Request("cpu:1", programs, images=4), **groups)
    with pytest.raises(ValueError, match="norm_group_size=6 does not divide the 3 images"):
        planned(workdir, Request("cpu:1", ("train",), images=6), **groups, **{"optimizer.grad_accum_steps": 2})
    with pytest.raises(
        ValueError, match=r"5 images per step must be a multiple of config\.optimizer\.grad_accum_steps=2"
    ):
        planned(workdir, Request("cpu:1", ("train",), images=5), **{"optimizer.grad_accum_steps": 2, "mesh.data": 1})
    assert not list(workdir.iterdir())
    frozen = ((r"image_encoder/backbone/.*", {"lr": 0.0}), (r"(?!image_encoder/backbone/).*", {"lr": 1.0}))
    result = planned(workdir, Request("cpu:1", ("encoder",), images=4), **groups, **{"optimizer.rules": frozen})
    assert result["programs"]["encoder"]["per_image"]["matrix_flops"] == 0  # there are no gradients


def config_with_constants(**changes) -> ConfigDict:
    config = make_config(**{"mesh.data": 1, **changes})
    with config.unlocked():
        config.objective.terms = ConfigDict({"rare": {"name": "token_frequencies:FrequentTokens"}})
    return config


@pytest.mark.slow
def test_constants_of_an_objective_are_planned_from_the_data(workdir, small_images):
    config = config_with_constants(**{"data.root": str(small_images)})
    request = Request("cpu:1", ("train",), images=2, vocabulary=290)
    with quick_compilation():
        with_constants = plan(RunSpec.from_config(config), workdir, request)
        without = planned(workdir, request, **{"mesh.data": 1})
    assert with_constants["assumed"]["constants"] == "of rare: made with the assumed vocabulary"
    assert "constants" not in without["assumed"]
    arguments = [result["programs"]["train"]["memory"]["arguments"] for result in (with_constants, without)]
    assert arguments[0] - arguments[1] == 4 * 290  # a frequency for each token


def test_unavailable_constants_are_reported_with_a_remedy(workdir):
    config = config_with_constants(**{"data.root": "nowhere"})
    message = r"^config\.objective\.terms\.rare has constants .* \(no such folder: nowhere.*\): start the run once"
    with pytest.raises(ValueError, match=message) as error:
        plan(RunSpec.from_config(config), workdir, Request("cpu:1", ("train",), images=2))
    assert "\n" not in str(error.value)
    assert plan(RunSpec.from_config(config), workdir, Request("cpu:1", ()))["programs"] == {}


@pytest.mark.slow
def test_stored_constants_of_the_run_are_used(small_workdir, tmp_path):
    import shutil

    import numpy as np
    from etils import epath
    from token_frequencies import FrequentTokens

    from caption_jax.objectives.constants import store_constants
    from caption_jax.runs.workdir import read_description

    workdir = epath.Path(shutil.copytree(small_workdir, tmp_path / "run"))
    size = read_description(workdir).vocabulary.size
    constants = {"rare": {"tokens": {"frequency": np.full(size, 1 / size, np.float32)}}}
    store_constants({"rare": FrequentTokens()}, constants, workdir)
    config = config_with_constants(**{"data.root": "nowhere"})
    with quick_compilation():
        result = plan(RunSpec.from_config(config), workdir, Request("cpu:1", ("train",), images=2))
    assert result["programs"]["train"]["per_image"]["matrix_flops"] > 0 and "constants" not in result["assumed"]


@pytest.mark.long
def test_a_tpu_that_is_not_attached(workdir, capsys):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU's compiler: pip install 'caption-jax[tpu]'")
    changes = {"model.encoder.norm_group_size": 4, "data.image_size": 64}
    request = Request("v5e:2x2", ("train",), images=16, vocabulary=290, compilations=1)
    result = plan(RunSpec.from_config(make_config(**changes)), workdir, request)
    print_plan(result)
    train = result["programs"]["train"]
    assert result["dtype"] == "bfloat16" and train["fits"] and train["memory"]["headroom"] > 0
    assert train["per_image"]["matrix_flops"] <= 1.05 * train["per_image"]["analytic_matrix_flops"]
    assert train["roofline"]["bound"] in ("compute", "memory", "links")
    # Group statistics stay on a device, so only gradients, metrics and running statistics are reduced.
    assert {(group["kind"], group["axis"]) for group in train["collectives"]} == {("all-reduce", "data")}
    tried = result["largest_batch"]["tried"]
    assert len(tried) == 2 and tried[1]["images"] > 16
    assert "maximum images/s" in capsys.readouterr().out

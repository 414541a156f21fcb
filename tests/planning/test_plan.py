"""Runs are planned without their data, for devices that are not attached."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
from ml_collections import ConfigDict
from small_run import ROOT, TEXT_ENCODER_FLAGS, get_config, run_main

from caption_jax.parameters.paths import flatten
from caption_jax.planning.assumed import describe_run
from caption_jax.planning.plan import Request, plan
from caption_jax.planning.table import print_plan
from caption_jax.runs.initial_variables import variable_shapes
from caption_jax.specs import RunSpec

CONFIG = f"--config={ROOT / 'tests' / 'small_run.py'}"
# The norms of the image encoder are frozen, and all kernels are frozen until step 7.
GRADUAL_UNFREEZING = (
    (r"image_encoder/.*norm/(scale|bias)", {"lr": 0.0}),
    (r"(?!image_encoder/.*norm/(scale|bias)).*kernel", {"lr": 1.0, "from_step": 7}),
    (r"(?!image_encoder/.*norm/(scale|bias))(?!.*kernel).*", {"lr": 1.0}),
)


def make_config(**changes) -> ConfigDict:
    config = get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"mesh.data": -1, **changes})
    return config


def make_plan(tmp_path, request, **changes):
    return plan(RunSpec.from_config(make_config(**changes)), tmp_path, request)


@pytest.fixture
def workdir(tmp_path):
    from etils import epath

    return epath.Path(tmp_path)


@pytest.mark.slow
def test_main_prints_and_writes_a_plan(tmp_path, capsys):
    plan_flags = ("--programs=train,evaluate,decode", "--images_per_chip=2", "--vocabulary=290", *TEXT_ENCODER_FLAGS)
    config_flags = ("--config.mesh.data=-1", "--config.data.root=nowhere", "--config.model.encoder.norm_group_size=2")
    arguments = (CONFIG, f"--workdir={tmp_path}", "--mode=plan", "--topology=cpu:8", *plan_flags, *config_flags)
    assert run_main(*arguments) == 0
    output, stored = capsys.readouterr().out, json.loads((tmp_path / "plan_cpu_8.json").read_text())
    assert stored["chips"] == 8 and stored["mesh"] == {"data": 8, "model": 1} and stored["dtype"] == "float32"
    assert stored["assumed"]["vocabulary"] == 290 and "assumed vocabulary: 290" in output
    train = stored["programs"]["train"]
    assert train["images_per_chip"] == 2 and train["memory"]["total"] > train["memory"]["arguments"] > 0
    assert train["per_image"]["matrix_flops"] > 0
    by_dtype = train["per_image"]["matrix_flops_by_dtype"]
    assert sum(by_dtype.values()) == pytest.approx(train["per_image"]["analytic_matrix_flops"], rel=0.25)
    # Devices reduce gradients and metrics, and gather the embeddings of the contrastive objective.
    assert {group["axis"] for group in train["collectives"]} == {"data"}
    gathers = [group for group in train["collectives"] if group["kind"] == "all-gather"]
    width = 16
    assert gathers and sum(group["bytes"] for group in gathers) >= 16 * 2 * width * 4
    reductions = next(group for group in train["collectives"] if group["kind"] == "all-reduce")
    assert reductions["bytes"] >= 4 * stored["parameters"]["trained"]
    assert reductions["bytes_by_dtype"]["f32"] == reductions["bytes"] and "all-reduce (data)" in output
    # A global batch of 16 images cannot be told apart from text encoder weights with 16 rows.
    assert train["gathered_may_include_weights"] and "as many rows as the global batch" in output
    assert "all-gather (data)" in output and "decode: 2 images per chip" in output
    parts = train["per_image"]["bytes_by_part"]
    decoder_parts = "attention projections, self-attention, cross-attention, feed-forward, norms, dropout, embedding"
    other_parts = {"encoder, depthwise", "loss", "contrastive objective", "text encoder", "optimizer"}
    assert set(parts) >= {*decoder_parts.split(", "), *other_parts}
    assert sum(parts.values()) == pytest.approx(train["per_image"]["memory_bytes"])
    assert parts.get("other", 0) < 0.2 * train["per_image"]["memory_bytes"]
    assert "    self-attention  " in output
    # The evaluation step also computes the loss of the references.
    evaluate, decode = (stored["programs"][name]["per_image"] for name in ("evaluate", "decode"))
    assert evaluate["bytes_by_part"]["loss"] > decode["bytes_by_part"].get("loss", 0)
    assert evaluate["matrix_flops"] > decode["matrix_flops"] > 0
    assert stored["assumed"]["generated_captions"] == "9 tokens each, the maximum"


@pytest.mark.parametrize("chips", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_evaluation_step_does_not_store_all_logits(workdir, chips):
    """The loss of the references is computed in chunks, in which each device has tokens of its own images."""
    images, captions, targets, vocabulary = 64, 5, 19, 4000
    changes = {"data.captions_per_image": captions, "data.max_length": targets + 1, "decode.max_length": 6}
    request = Request(f"cpu:{chips}", ("evaluate",), images=images, vocabulary=vocabulary)
    evaluate = make_plan(workdir, request, **changes)["programs"]["evaluate"]
    all_logits = 4 * images * captions * targets * vocabulary
    assert evaluate["memory"]["temporaries"] < 0.3 * all_logits
    # The outputs are gathered: captions, their log-probabilities, and the indices and masks of the images.
    assert sum(group["bytes"] for group in evaluate["collectives"]) <= 20 * 4 * images * chips


@pytest.mark.slow
def test_bfloat16_runs_have_no_float32_matmuls_in_encoding_and_decoding(workdir, capsys):
    """Parameters, norms and sums are float32, but the operands of matrix products are bfloat16."""
    request = Request("cpu:1", ("encoder", "decode"), images=2)
    result = make_plan(workdir, request, **{"mesh.data": 1, "dtype": "bfloat16"})
    for program in result["programs"].values():
        assert set(program["per_image"]["matrix_flops_by_dtype"]) == {"bf16"}
    print_plan(result)
    assert "by operand type            bf16" in capsys.readouterr().out


@pytest.mark.slow
def test_the_phase_of_gradual_unfreezing_is_selected_by_a_step(workdir):
    changes = {"optimizer.rules": GRADUAL_UNFREEZING, "mesh.data": 1, "optimizer.ema": 0.9}
    first = make_plan(workdir, Request("cpu:1", ("encoder",), "first", 2, 290), **changes)
    early = make_plan(workdir, Request("cpu:1", (), "6", 2, 290), **changes)
    late = make_plan(workdir, Request("cpu:1", ("encoder",), "7", 7, 290), **changes)
    last = make_plan(workdir, Request("cpu:1", (), "last", 2, 290), **changes)
    assert late["phase"]["starts"] == [0, 7]
    assert not late["programs"]["encoder"]["gathered_may_include_weights"]  # no weights have 7 rows
    assert first["parameters"] == early["parameters"] != late["parameters"] == last["parameters"]
    flops = [result["programs"]["encoder"]["per_image"]["analytic_matrix_flops"] for result in (first, late)]
    assert flops[0] < 0.7 * flops[1]  # frozen convolutions have no gradients
    unfrozen = make_plan(workdir, Request("cpu:1", (), "all", 2, 290), **changes)
    assert unfrozen["parameters"]["trained"] == unfrozen["parameters"]["all"] > last["parameters"]["trained"]
    with pytest.raises(ValueError, match="--phase='end'"):
        make_plan(workdir, Request("cpu:1", (), "end"), **changes)


def test_the_vocabulary_size_is_read_from_a_trained_workdir(small_workdir, workdir):
    from etils import epath

    result = make_plan(epath.Path(small_workdir), Request("cpu:1", (), images=2))
    assert list(result["assumed"]) == ["packing"]
    assert make_plan(workdir, Request("cpu:1", (), images=2))["assumed"]["vocabulary"] == 300


def test_indivisible_batches_and_unknown_programs_are_rejected(workdir):
    with pytest.raises(ValueError, match="batch_size=4 images cannot be split evenly across 8 devices"):
        make_plan(workdir, Request("cpu:8", ("train",)))
    with pytest.raises(ValueError, match="unknown program eval; choose from train, evaluate, decode, encoder"):
        make_plan(workdir, Request("cpu:8", ("eval",)))


def test_batch_sizes_that_the_backbone_does_not_support_are_rejected_before_compilation(workdir):
    groups = {"model.encoder.norm_group_size": 6, "mesh.data": 1}
    for programs in (("decode", "train"), ("encoder",)):
        with pytest.raises(ValueError, match="norm_group_size=6 does not divide the 4 images"):
            make_plan(workdir, Request("cpu:1", programs, images=4), **groups)
    with pytest.raises(ValueError, match="norm_group_size=6 does not divide the 3 images"):
        make_plan(workdir, Request("cpu:1", ("train",), images=6), **groups, **{"optimizer.grad_accum_steps": 2})
    with pytest.raises(
        ValueError, match=r"5 images per step must be a multiple of config\.optimizer\.grad_accum_steps=2"
    ):
        make_plan(workdir, Request("cpu:1", ("train",), images=5), **{"optimizer.grad_accum_steps": 2, "mesh.data": 1})
    assert not list(workdir.iterdir())
    frozen = ((r"image_encoder/backbone/.*", {"lr": 0.0}), (r"(?!image_encoder/backbone/).*", {"lr": 1.0}))
    result = make_plan(workdir, Request("cpu:1", ("encoder",), images=4), **groups, **{"optimizer.rules": frozen})
    assert result["programs"]["encoder"]["per_image"]["matrix_flops"] == 0  # no gradients


def make_config_with_constants(**changes) -> ConfigDict:
    config = make_config(**{"mesh.data": 1, **changes})
    with config.unlocked():
        config.objective.terms = ConfigDict({"rare": {"name": "token_frequencies:FrequentTokens"}})
    return config


@pytest.mark.slow
def test_objective_constants_are_computed_from_the_data(workdir, small_images):
    config = make_config_with_constants(**{"data.root": str(small_images)})
    request = Request("cpu:1", ("train",), images=2, vocabulary=290)
    result = plan(RunSpec.from_config(config), workdir, request)
    baseline = make_plan(workdir, request, **{"mesh.data": 1})
    assert result["assumed"]["constants"] == "of rare: made with the assumed vocabulary"
    assert "constants" not in baseline["assumed"]
    argument_bytes, baseline_bytes = (
        plan_result["programs"]["train"]["memory"]["arguments"] for plan_result in (result, baseline)
    )
    assert argument_bytes - baseline_bytes == 4 * 290  # one float32 frequency per token


def test_the_error_for_unavailable_constants_names_a_remedy(workdir):
    config = make_config_with_constants(**{"data.root": "missing"})
    message = r"^config\.objective\.terms\.rare has constants .* \(no such folder: missing.*\): start the run once"
    with pytest.raises(ValueError, match=message) as error:
        plan(RunSpec.from_config(config), workdir, Request("cpu:1", ("train",), images=2))
    assert "\n" not in str(error.value)
    assert plan(RunSpec.from_config(config), workdir, Request("cpu:1", ()))["programs"] == {}


@pytest.mark.slow
def test_stored_constants_are_read_from_the_workdir(small_workdir, tmp_path):
    import shutil

    import numpy as np
    from etils import epath
    from token_frequencies import FrequentTokens

    from caption_jax.objectives.constants import store_constants
    from caption_jax.runs.workdir import read_description

    workdir = epath.Path(shutil.copytree(small_workdir, tmp_path / "run"))
    vocabulary_size = read_description(workdir).vocabulary.size
    frequency = np.full(vocabulary_size, 1 / vocabulary_size, np.float32)
    constants = {"rare": {"tokens": {"frequency": frequency}}}
    store_constants({"rare": FrequentTokens()}, constants, workdir)
    config = make_config_with_constants(**{"data.root": "missing"})
    result = plan(RunSpec.from_config(config), workdir, Request("cpu:1", ("train",), images=2))
    assert result["programs"]["train"]["per_image"]["matrix_flops"] > 0 and "constants" not in result["assumed"]


def make_reward_config(**changes) -> ConfigDict:
    config = make_config(**{"data.root": "missing", **changes})
    with config.unlocked():
        name = "caption_jax.objectives.sequence_reward:SequenceReward"
        config.objective.terms = ConfigDict({"reward": {"name": name, "rouge_l": 1.0}})
    return config


@pytest.mark.slow
def test_training_on_rewards_is_planned_without_data_and_has_no_host_transfers(workdir, capsys):
    config = make_reward_config(**{"mesh.data": 1})
    result = plan(RunSpec.from_config(config), workdir, Request("cpu:1", ("train",), images=2, vocabulary=290))
    assert result["assumed"]["constants"] == "of reward: for 113,287 images with 5 captions each"
    assert result["programs"]["train"]["host_transfers"] == {}
    assert result["programs"]["train"]["memory"]["arguments"] > 113_287 * 5 * 11.8 * 8  # the references
    print_plan(result)
    assert "host transfers               none" in capsys.readouterr().out


@pytest.mark.long
def test_training_on_rewards_has_no_host_transfers_on_a_tpu(workdir):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU's compiler: pip install 'caption-jax[tpu]'")
    config = make_reward_config(**{"model.encoder.norm_group_size": 4})
    request = Request("v5e:2x2", ("train",), images=16, vocabulary=290)
    train = plan(RunSpec.from_config(config), workdir, request)["programs"]["train"]
    assert train["host_transfers"] == {} and train["per_image"]["memory_bytes"] > 0
    assert {group["kind"] for group in train["collectives"]} == {"all-reduce"}


@pytest.mark.long
def test_a_run_is_planned_for_a_tpu_that_is_not_attached(workdir, capsys):
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
    assert set(train["collectives"][0]["bytes_by_dtype"]) == {"f32"}
    trials = result["largest_batch"]["tried"]
    assert len(trials) == 2 and trials[1]["images"] > 16
    assert "maximum images/s" in capsys.readouterr().out


@pytest.mark.long
def test_gradients_of_kernels_are_reduced_in_bfloat16_on_request(workdir):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU's compiler: pip install 'caption-jax[tpu]'")
    changes = {"model.encoder.norm_group_size": 4, "data.image_size": 64, "train.gradient_reduction": "bfloat16"}
    result = make_plan(workdir, Request("v5e:2x2", ("train",), images=16, vocabulary=290), **changes)
    (reductions,) = result["programs"]["train"]["collectives"]
    description, _ = describe_run(RunSpec.from_config(make_config(**changes)), workdir, 290)
    shapes = flatten(variable_shapes(description)["params"])
    kernels = sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path.endswith("/kernel"))
    assert reductions["bytes_by_dtype"]["bf16"] == 2 * kernels


@pytest.mark.long
def test_a_run_is_planned_for_gpus_that_are_not_attached(workdir, capsys):
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("needs the compiler for GPUs: pip install 'caption-jax[cuda-compiler]'")
    changes = {"model.encoder.norm_group_size": 4, "data.image_size": 64}
    result = plan(RunSpec.from_config(make_config(**changes)), workdir, Request("h100:2", ("train",), images=16))
    print_plan(result)
    train = result["programs"]["train"]
    assert result["dtype"] == "bfloat16" and train["fits"] and train["memory"]["headroom"] > 0
    assert 0.9 < train["per_image"]["matrix_flops"] / train["per_image"]["analytic_matrix_flops"] < 1.1
    assert {group["axis"] for group in train["collectives"]} == {"data"}
    assert "h100:2: 2 devices" in capsys.readouterr().out

"""Weights of each network are found in the checkpoints of common PyTorch training programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from roberta_folder import torch_state
from safetensors.numpy import save_file
from seeded_weights import seeded_array, seeded_weights
from torch_files import BFLOAT16, Global, Instance, save
from torch_vits import GOLDEN

from caption_jax.errors import MissingFileError
from caption_jax.models.backbones.efficientnet_variants import get_variant
from caption_jax.models.roberta import RobertaSettings
from caption_jax.pretrained import WeightsError, encoder_settings, load_encoder_weights, naming
from caption_jax.pretrained.efficientnet_weights import _get_expected_shapes
from caption_jax.pretrained.roberta_weights import _STEMS, load_roberta
from caption_jax.pretrained.vit_weights import load_vit_weights, vit_settings

State = dict[str, np.ndarray]
NAMESPACE, LIGHTNING_CONFIG = (
    Global("argparse", "Namespace"),
    Global("lightning.fabric.utilities.data", "AttributeDict"),
)
OPTIMIZER = {"state": {0: {"step": 3, "exp_avg": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.1}]}


def make_efficientnet() -> State:
    """Returns the weights of the variant "micro" with timm's names."""
    names, modules = naming.TIMM, naming.TIMM.modules(get_variant("micro"))
    state = {}
    for variable, shape in _get_expected_shapes("micro").items():
        path = variable.split("/", 1)[1]
        key = names.key(modules, path)
        if path.endswith("depthwise/conv/kernel"):
            shape = (shape[2], 1, *shape[:2])
        elif path.endswith("kernel"):
            shape = tuple(np.transpose(np.empty(shape)).shape) if len(shape) == 4 else (*shape[::-1], 1, 1)
        state[key] = seeded_array(key, shape)
    return state | {"bn1.num_batches_tracked": np.array(7), "classifier.weight": np.ones((5, 9), np.float32)}


def make_vit() -> State:
    """Returns the weights of the size "micro" with timm's names."""
    shapes = json.loads(str(np.load(GOLDEN / "timm.npz")["shapes"]))
    return seeded_weights({key: tuple(shape) for key, shape in shapes.items()})


ROBERTA = RobertaSettings(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=12,
)


def make_roberta() -> State:
    """Returns the weights of a small RoBERTa with a language model head, with the names of transformers."""
    from caption_jax.models.roberta import Roberta

    ids = np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(Roberta(ROBERTA).init, jax.random.key(0), ids, ids == 0)["params"]
    flat = traverse_util.flatten_dict(shapes, sep=".")
    state = torch_state({name: seeded_array(name, leaf.shape) for name, leaf in flat.items()})
    return {f"roberta.{name}": value for name, value in state.items()} | {"lm_head.bias": np.ones(30, np.float32)}


def load_roberta_params(path: str) -> Any:
    (Path(path).parent / "config.json").write_text(json.dumps({**vars(ROBERTA), "model_type": "roberta"}))
    return load_roberta(path).params


# Network -> (weights, function that loads a file, config.json of the library).
NETWORKS: dict[str, tuple[Callable[[], State], Callable[[str], Any], dict[str, Any]]] = {
    "efficientnet": (
        make_efficientnet,
        lambda path: load_encoder_weights(path, "micro").variables,
        {"architecture": "tf_efficientnet_b0"},
    ),
    "vit": (
        make_vit,
        lambda path: load_vit_weights(path, "micro", 32).variables,
        {"architecture": "vit_small_patch16_224"},
    ),
    "roberta": (make_roberta, load_roberta_params, {}),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory) -> tuple[State, Callable[[str], Any], Any]:
    """Weights by key, a function that loads them from a file, and the variables that are expected."""
    make, load, config = NETWORKS[request.param]
    state, folder = make(), tmp_path_factory.mktemp(request.param)

    def load_with_config(path: str) -> Any:
        (Path(path).parent / "config.json").write_text(json.dumps(config))
        return load(path)

    save_file(state, folder / "plain.safetensors")
    return state, load_with_config, load_with_config(str(folder / "plain.safetensors"))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def zeros(state: State) -> State:
    """Weights that must not be read, because the averaged weights are preferred."""
    return {key: np.zeros_like(value) for key, value in state.items()}


CHECKPOINTS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "plain": ("weights.pth", lambda state: state),
    "data parallel": ("weights.pt", lambda state: prefixed("module.", state)),
    "compiled": ("weights.bin", lambda state: prefixed("_orig_mod.", state)),
    "compiled submodules": (
        "weights.pth",
        lambda state: {key.replace("0.", "0._orig_mod.", 1): value for key, value in state.items()},
    ),
    "compiled and data parallel": ("weights.pth", lambda state: prefixed("module._orig_mod.", state)),
    "model_state_dict": (
        "checkpoint.pt",
        lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": OPTIMIZER, "loss": 0.5},
    ),
    "nested": ("checkpoint.pt", lambda state: {"model": {"state_dict": prefixed("module.", state), "step": 3}}),
    "Lightning": (
        "epoch=1-step=20.ckpt",
        lambda state: {
            "epoch": 1,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": prefixed("model.", state) | {"criterion.weight": np.ones(3, np.float32)},
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint{}": {"best_model_score": np.array(1), "kth": Instance(NAMESPACE)}},
            "optimizer_states": [OPTIMIZER],
            "lr_schedulers": [Instance(Global("torch.optim.lr_scheduler", "LambdaLR"), {"last_epoch": 2})],
            "hyper_parameters": Instance(Global("lightning.fabric.utilities.data", "AttributeDict"), {"lr": 0.1}),
        },
    ),
    "compiled Lightning module": ("last.ckpt", lambda state: {"state_dict": prefixed("model._orig_mod.", state)}),
    "Lightning with an averaged copy": (
        "last.ckpt",
        lambda state: {"state_dict": prefixed("model.", zeros(state)) | prefixed("ema_model.module.", state)},
    ),
    "timm": (
        "model_best.pth.tar",
        lambda state: {
            "epoch": 9,
            "arch": "tf_efficientnet_b0",
            "state_dict": zeros(state),
            "state_dict_ema": state,
            "optimizer": OPTIMIZER,
            "args": Instance(NAMESPACE, {"lr": 0.1, "mean": None}),
            "metric": Instance(Global("numpy.core.multiarray", "scalar")),
        },
    ),
    "timm without an average": ("last.pth.tar", lambda state: {"state_dict": state, "state_dict_ema": None}),
    "torchvision": (
        "checkpoint.pth",
        lambda state: {
            "model": zeros(state),
            "model_ema": prefixed("module.", state) | {"n_averaged": np.array(5)},
            "args": Instance(NAMESPACE),
        },
    ),
    "extra state of modules": (
        "weights.pth",
        lambda state: state | {"quantizer._extra_state": Instance(NAMESPACE)},
    ),
    "another head": (
        "weights.pth",
        lambda state: (
            {key: value for key, value in state.items() if not key.startswith(("classifier", "head"))}
            | {"classifier.weight": np.ones((3, 40), np.float32), "fc.0.bias": np.ones(3, np.float32)}
            | {"head.layers.2.weight": np.ones((3, 4), np.float32)}
        ),
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_are_found_in_checkpoints(network, name, tmp_path):
    state, load, expected = network
    file, make = CHECKPOINTS[name]
    variables = load(str(save(make(state), tmp_path / file)))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_prefixes_are_also_found_in_safetensors_files(network, tmp_path):
    state, load, expected = network
    save_file(prefixed("module.", state), tmp_path / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load(str(tmp_path / "weights.safetensors")), expected)


@pytest.mark.parametrize("file", ["half.pth", "half.safetensors"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=lambda dtype: dtype.name)
def test_half_precision_is_converted_to_float32(network, dtype, file, tmp_path):
    state, load, expected = network
    half = {key: value.astype(dtype) if value.dtype == np.float32 else value for key, value in state.items()}
    write = save if file.endswith(".pth") else save_file
    write(half, tmp_path / file)
    variables = load(str(tmp_path / file))
    for leaf, expected_leaf in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, expected_leaf, rtol=2**-7, atol=1e-6)


def test_settings_of_timm_checkpoints_are_read_without_a_config_file(tmp_path):
    arguments = Instance(NAMESPACE, {"mean": (0.1, 0.2, 0.3), "std": [1.0, 1.0, 1.0]})
    checkpoint = {"arch": "efficientnet_b0", "state_dict": make_efficientnet(), "args": arguments}
    settings = encoder_settings(str(save(checkpoint, tmp_path / "model_best.pth.tar")), "micro")
    assert (settings.padding, settings.norm_epsilon) == ("symmetric", 1e-5)
    assert settings.mean == pytest.approx((25.5, 51.0, 76.5)) and settings.std == (255.0,) * 3
    checkpoint = {"arch": "tf_efficientnet_b0", "state_dict": make_efficientnet(), "args": Instance(NAMESPACE)}
    settings = encoder_settings(str(save(checkpoint, tmp_path / "model_best.pth.tar")), "micro")
    assert (settings.padding, settings.norm_epsilon) == ("same", 1e-3)
    checkpoint = {"arch": "vit_small_patch16_224", "state_dict": make_vit()}
    assert vit_settings(str(save(checkpoint, tmp_path / "vit.pth.tar")), "micro").mean == (127.5,) * 3


MALICIOUS = Instance(Global("os", "system"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Instance(Global("timm.models", "Net")), r"object of the class timm\.models\.Net .*torch\.save\(model\.state"),
        (
            {"state_dict": {"conv_stem.weight": np.ones(1, np.float32), "x": MALICIOUS}},
            r"os\.system at 'state_dict\.x'",
        ),
        ({"model": {"conv_stem.weight": np.ones(1, np.float32), "steps": 3}}, r"'model\.steps' is a int, not a tensor"),
        ({"optimizer": OPTIMIZER, "epoch": 3}, r"keys: 'optimizer', 'epoch'; expected one of state_dict_ema, .*state"),
        ({"epoch": 3, "model": Instance(Global("yolo", "Net"))}, r"yolo\.Net at 'model'.*; save the weights alone"),
        ([np.ones(1, np.float32)], r"the file contains a list; save the weights alone"),
        ({"a.weight": np.ones(1, np.float32)}, r"no weights of a supported EfficientNet.*got 'a\.weight'"),
        (
            prefixed("student.", make_efficientnet()) | prefixed("teacher.", make_efficientnet()),
            r"several networks, with the prefixes 'student\.', 'teacher\.'; save one of them: torch\.save",
        ),
    ],
    ids=["whole module", "code", "number", "no entry", "module in an entry", "list", "other network", "two networks"],
)
def test_unusable_checkpoints_are_rejected_with_a_remedy(content, message, tmp_path):
    path = save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*{message}") as error:
        load_encoder_weights(str(path), "micro")
    assert "\n" not in str(error.value)


def test_roberta_files_need_a_config_and_a_network(tmp_path):
    path = save({"state_dict": prefixed("model.", make_roberta())}, tmp_path / "last.ckpt")
    with pytest.raises(MissingFileError, match=r"has no config\.json: copy the config\.json"):
        load_roberta(str(path))
    (tmp_path / "config.json").write_text(json.dumps({**vars(ROBERTA), "model_type": "roberta"}))
    assert load_roberta(str(path)).output_bias.tolist() == [1.0] * 30
    with pytest.raises(MissingFileError, match=r"no such file: .*first\.ckpt"):
        load_roberta(str(tmp_path / "first.ckpt"))
    save({"state_dict": {"a.weight": np.ones(1, np.float32)}}, path)
    with pytest.raises(WeightsError, match=rf"last\.ckpt does not contain a RoBERTa model: no key ends in {_STEMS[0]}"):
        load_roberta(str(path))


@pytest.mark.torch
def test_checkpoints_written_by_torch_are_read(network, tmp_path):
    """Writes checkpoints with optimizer states, arguments and wrapped modules with `torch.save`."""
    import argparse

    torch = pytest.importorskip("torch")
    state, load, expected = network
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    common = {
        "arch": "tf_efficientnet_b0",
        "args": argparse.Namespace(lr=0.1, mean=None, betas=(0.9, 0.99), device=torch.device("cpu")),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "metric": np.float64(0.5),
        "rng": torch.get_rng_state(),
        "shape": torch.Size([3]),
        "dtype": torch.float32,
        "path": Path("run"),
    }
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Module())
    assert "n_averaged" in averaged.state_dict()
    files = {
        "best.pth.tar": {**common, "state_dict": tensors},
        "last.ckpt": {**common, "state_dict": {f"model._orig_mod.{key}": value for key, value in tensors.items()}},
        "ema.pt": {**common, "model_ema": {f"module.{k}": v for k, v in tensors.items()} | averaged.state_dict()},
        "parameters.pth": {k: torch.nn.Parameter(v, v.is_floating_point() and v.ndim > 9) for k, v in tensors.items()},
    }
    for legacy in (False, True):
        for name, content in files.items():
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
            jax.tree.map(np.testing.assert_array_equal, load(str(tmp_path / name)), expected)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    torch.save(module, tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"object of the class torch\.nn\.modules\.container\.Sequential"):
        load(str(tmp_path / "whole.pth"))
    wrapped = torch.nn.DataParallel(torch.compile(module)).state_dict()
    assert all(key.startswith("module._orig_mod.") for key in wrapped), "the prefixes that the other tests assume"

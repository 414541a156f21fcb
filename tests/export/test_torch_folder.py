"""The PyTorch captioner runs without our packages, and agrees with the workdir in logits and captions."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import small_run
from safetensors.numpy import load_file
from varied_models import write_varied_model

import caption_jax
from caption_jax.errors import ConfigError, MissingFileError
from caption_jax.export.exporter import export_model
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.runs.loading import read_model
from caption_jax.specs import RunSpec

# Config keys and settings of the image encoder that cover all branches of the captioner.
MODELS = {
    "symmetric, grid": ({}, 32, {}),
    "same, both, post-norm": (
        {"model.image_memory": "both", "model.decoder.norm": "post", "model.decoder.activation": "gelu"},
        *(45, {"padding": "same", "norm_epsilon": 1e-3}),
    ),
    "same, flat vector, sinusoidal": (
        {"model.image_memory": "vector", "model.vector": "flatten", "model.decoder.positions": "sinusoidal"},
        *(32, {"padding": "same", "norm_epsilon": 1e-3}),
    ),
    # 17 layers of random weights amplify rounding: with a gain of 6, the float32 logits of both libraries differ from
    # float64 by 3e-4.
    "lite": ({"model.encoder.variant": "lite0", "decode.min_length": 8}, 64, {"gain": 0.5}),
    "two layers": ({"model.decoder.layers": 2}, 32, {}),
}
IMAGES = [small_run.box_image(colour, side) for colour in small_run.COLOURS for side in small_run.SIDES]


def load_source(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_captioner", folder / "captioner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_error(workdir: Path, changes: dict) -> str:
    config = small_run.get_config().unlock()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError) as caught:
        export_model(workdir, "torch", workdir.parent / "out", spec=RunSpec.from_config(config))
    assert not (workdir.parent / "out").exists()
    return str(caught.value)


def test_unsupported_decoding_settings_are_named_with_a_remedy(tmp_path):
    write_varied_model(tmp_path / "run")
    for changes, key in (({"decode.method": "beam"}, "method"), ({"decode.prefix": "a"}, "prefix")):
        message = read_error(tmp_path / "run", changes)
        assert re.search(rf"--to=torch .*config.decode.{key}=.*add --config.decode.{key}=", message)


@pytest.mark.parametrize(("key", "value"), [("encoder.fine_stage", "stage_2"), ("memory_layers", 1)])
def test_unsupported_parts_of_the_model_are_named_with_a_remedy(key, value, tmp_path):
    write_varied_model(tmp_path / "run", {f"model.{key}": value})
    error = read_error(tmp_path / "run", {})
    assert error.startswith(f"--to=torch does not support config.model.{key}={value!r}")
    assert error.endswith("use --to=folder")


def test_the_folder_has_names_of_timm_and_is_not_mistaken_for_one_of_ours(tmp_path):
    write_varied_model(tmp_path / "run")
    folder = Path(export_model(tmp_path / "run", "torch", tmp_path / "out"))
    names = load_file(folder / "model.safetensors")
    assert names["encoder.conv_stem.weight"].shape == (8, 3, 3, 3)
    assert names["encoder.blocks.1.0.conv_pwl.weight"].shape[2:] == (1, 1)
    assert {"encoder.blocks.0.0.bn2.running_var", "decoder.layers.0.self_attention.qkv.weight"} <= names.keys()
    with pytest.raises(MissingFileError, match=r"manifest.json is missing: .* --to=folder"):
        caption_jax.load(folder)


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_captions_are_those_of_the_workdir(name, tmp_path):
    import torch

    changes, size, backbone = MODELS[name]
    write_varied_model(tmp_path / "run", changes, size=size, **backbone)
    source = load_source(Path(export_model(tmp_path / "run", "torch", tmp_path / "out")))
    captioner, model = source.Captioner(tmp_path / "out"), read_model(tmp_path / "run")
    description, variables = model.description, model.weights.variables
    pixels = np.stack([description.preprocessing.load(image) for image in IMAGES])
    linen = description.model()
    tokens = np.random.default_rng(0).integers(0, description.vocabulary.size, (len(IMAGES), 1, 9))
    features = encode_for_decoding(linen, variables, pixels, None, description)
    expected = np.asarray(linen.apply(variables, tokens, features, method="decode").logits)[:, 0]
    with torch.no_grad():
        logits = captioner.model(torch.from_numpy(pixels), torch.from_numpy(tokens[:, 0])).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1  # the images matter
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    ids = captioner.model.decode_greedily(torch.from_numpy(pixels)).tolist()
    captions = caption_jax.load(tmp_path / "run").caption([*pixels])
    assert [captioner.vocabulary.decode(row) for row in ids] == [caption.text for caption in captions]
    assert len({caption.text for caption in captions}) > 1 or "gain" in backbone


@pytest.mark.torch
def test_the_encoder_is_that_of_timm(tmp_path):
    import timm
    import torch

    write_varied_model(tmp_path / "run", {"model.encoder.variant": "b0"}, size=64, padding="same", norm_epsilon=1e-3)
    folder = Path(export_model(tmp_path / "run", "torch", tmp_path / "out"))
    captioner = load_source(folder).Captioner(folder)
    peer = timm.create_model("tf_efficientnet_b0", num_classes=0).eval()
    arrays = load_file(folder / "model.safetensors")
    encoder = {name: array for name, array in arrays.items() if name.startswith("encoder.")}
    state = {name.removeprefix("encoder."): torch.from_numpy(array) for name, array in encoder.items()}
    peer.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer.forward_features(images)
        torch.testing.assert_close(captioner.model.encoder(images), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.torch
def test_the_command_runs_without_our_packages(tmp_path):
    write_varied_model(tmp_path / "run")
    export_model(tmp_path / "run", "torch", tmp_path / "out")
    IMAGES[0].save(tmp_path / "photo.png")
    code = (
        "import runpy, sys; sys.argv = ['captioner.py', 'photo.png']\n"
        "for name in ('caption_jax', 'input_pipeline', 'jax', 'timm'): sys.modules[name] = None\n"
        "runpy.run_path('out/captioner.py', run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"photo.png\t{caption_jax.load(tmp_path / 'run').caption(IMAGES[0]).text}\n"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["encoder"]["padding"] == "symmetric"

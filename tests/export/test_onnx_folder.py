"""ONNX graphs give the captions of the workdir in ONNX Runtime, for any batch, without our packages."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run
from fresh_environment import make_environment, run_captioner, write_photographs
from test_stablehlo_folder import compute_expected, load_source, read_pixels
from varied_models import write_varied_model

import caption_jax
from caption_jax.errors import ConfigError, MissingPackageError
from caption_jax.export.exporter import export_model
from caption_jax.specs import RunSpec

# Config keys and settings of the image encoder, with the constraints that the graph of a step contains.
MODELS = {
    "min_length": ({"decode.min_length": 6, "decode.immediate_repeats": "forbid"}, {}),
    "prefix, post-norm": (
        {
            **{"decode.prefix": "a red", "decode.banned_words": ("box",), "decode.banned_endings": ("on the",)},
            **{"model.decoder.norm": "post", "model.image_memory": "both", "model.decoder.layers": 2},
        },
        {"padding": "same", "norm_epsilon": 1e-3},
    ),
    "fine, memory layers": (
        {
            **{"model.encoder.fine_stage": "stage_2", "model.memory_layers": 1, "decode.at_limit": "end"},
            **{"model.decoder.positions": "sinusoidal", "decode.max_length": 7},
        },
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_the_workdir(name, tmp_path):
    for module in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(module)
    changes, backbone = MODELS[name]
    write_varied_model(tmp_path / "run", changes, **backbone)
    folder = Path(export_model(tmp_path / "run", "onnx", tmp_path / "out"))
    captioner = load_source(folder).Captioner(folder)
    for count in (1, 7):
        tokens, log_probs = captioner.decode_greedily(read_pixels(count))
        expected, expected_log_probs = compute_expected(tmp_path / "run", read_pixels(count))
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-3)
    assert len(np.unique(tokens, axis=0)) > 1  # the images matter
    config = json.loads((folder / "config.json").read_text())
    assert config["length"] == tokens.shape[1]
    assert config["graphs"]["encode.onnx"]["inputs"] == {"pixels": "uint8[batch, 32, 32, 3]"}


@pytest.mark.slow
def test_the_captioner_runs_in_an_environment_with_onnx_runtime_alone(tmp_path):
    pytest.importorskip("jax2onnx")
    write_varied_model(tmp_path / "run")
    folder = Path(export_model(tmp_path / "run", "onnx", tmp_path / "out"))
    images = write_photographs(tmp_path / "images", 50, 32)
    python = make_environment(tmp_path / "environment", "onnxruntime", "numpy", "pillow")
    captions = caption_jax.load(tmp_path / "run").caption(images)
    lines = run_captioner(python, folder, images)
    assert lines == [f"{path}\t{caption.text}" for path, caption in zip(images, captions, strict=True)]


def test_unsupported_decoding_settings_are_named_with_a_remedy(tmp_path):
    write_varied_model(tmp_path / "run")
    for key, value in (("method", "beam"), ("no_repeat_ngram", 2), ("repetition_penalty", 1.5)):
        config = small_run.get_config().unlock()
        config.decode[key] = value
        with pytest.raises(ConfigError) as caught:
            export_model(tmp_path / "run", "onnx", tmp_path / "out", spec=RunSpec.from_config(config))
        assert re.search(rf"--to=onnx .*config.decode.{key}=.*add --config.decode.{key}=", str(caught.value))
    assert not (tmp_path / "out").exists()


def test_a_missing_converter_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    write_varied_model(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(MissingPackageError, match=r"--to=onnx needs .*jax2onnx.*caption-jax\[onnx\]"):
        export_model(tmp_path / "run", "onnx", tmp_path / "out")

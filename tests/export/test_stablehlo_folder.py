"""StableHLO programs have the tokens and log-probabilities of the workdir, for any batch, without our packages."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
import small_run
from doc_examples import read_python_blocks
from fresh_environment import make_environment, run_captioner, run_script, write_photographs
from PIL import Image
from safetensors.numpy import load_file
from small_run import ROOT
from varied_models import write_varied_model

import caption_jax
from caption_jax.errors import ConfigError
from caption_jax.export.captioner_source import read_captioner
from caption_jax.export.exporter import export_model
from caption_jax.export.portable_files import token_bytes
from caption_jax.export.text_source import decode_text, print_captions
from caption_jax.inference.caption_program import make_caption_program
from caption_jax.inference.ensemble import SINGLE_MODEL
from caption_jax.runs.loading import read_model
from caption_jax.specs import RunSpec

# Config keys and settings of the image encoder, with other decoding methods and constraints.
MODELS = {
    "greedy": ({"decode.min_length": 6, "decode.immediate_repeats": "forbid"}, {}),
    "beam": ({"decode.method": "beam", "decode.num_beams": 3, "decode.no_repeat_ngram": 2, "decode.alpha": 0.7}, {}),
    "groups, post-norm": (
        {
            **{"decode.method": "beam", "decode.num_beams": 4, "decode.groups": 2, "decode.at_limit": "end"},
            **{"model.decoder.norm": "post", "model.image_memory": "both", "decode.repetition_penalty": 1.2},
        },
        {"padding": "same", "norm_epsilon": 1e-3},
    ),
    "sample, fine, memory layers": (
        {
            **{"decode.method": "sample", "decode.num_samples": 3, "decode.banned_words": ("box",)},
            **{"model.encoder.fine_stage": "stage_2", "model.memory_layers": 1, "model.image_memory": "vector"},
        },
        {},
    ),
}


def load_source(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_captioner", folder / "captioner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_pixels(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def compute_expected(workdir: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = read_model(workdir)
    program = make_caption_program(model.description, model.description.spec.decode, SINGLE_MODEL, None)
    return tuple(map(np.asarray, program(model.weights.variables, pixels, None, ())))


def check_program(workdir: Path, folder: Path, counts: tuple[int, ...] = (1, 7)) -> ModuleType:
    """Compares the program with the workdir for several batch sizes, and returns the module of the captioner."""
    source = load_source(folder)
    captioner = source.Captioner(folder)
    for count in counts:
        pixels = read_pixels(count)
        tokens, log_probs = captioner.caption_program(captioner.weights, pixels)
        expected, expected_log_probs = compute_expected(workdir, pixels)
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-5)
    return source


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_log_probabilities_are_those_of_the_workdir(name, tmp_path):
    changes, backbone = MODELS[name]
    write_varied_model(tmp_path / "run", changes, **backbone)
    folder = Path(export_model(tmp_path / "run", "stablehlo", tmp_path / "out"))
    check_program(tmp_path / "run", folder)
    texts = {caption.text for caption in caption_jax.load(tmp_path / "run").caption([*read_pixels(7)])}
    assert len(texts) > 1  # the images matter
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    assert config["programs"]["caption"]["arguments"] == [*sorted(weights), "pixels"]
    assert config["programs"]["caption"]["results"][1] == "float32[batch]"
    assert config["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_programs_are_for_all_platforms_and_have_only_guaranteed_custom_calls(tmp_path):
    write_varied_model(tmp_path / "run", {"decode.method": "beam", "decode.num_beams": 3})
    folder = Path(export_model(tmp_path / "run", "stablehlo", tmp_path / "out"))
    for name in ("encode", "caption"):
        program = jax.export.deserialize(bytearray((folder / f"{name}.bin").read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu") and not program.disabled_safety_checks
        assert str(program.in_avals[-1]) == "uint8[batch,32,32,3]"
        assert set(re.findall(r"custom_call @(\w+)", program.mlir_module())) <= {"shape_assertion"}
        # Weights are arguments: their values do not occur in the program.
        assert max(map(len, re.findall(r'dense<"0x(\w*)"', program.mlir_module())), default=0) < 2**12


@pytest.mark.slow
def test_reranking_and_embeddings_are_exported_without_unused_weights(searchable_workdir, tmp_path):
    spec = read_model(searchable_workdir).description.spec
    reranking = dataclasses.replace(spec.decode, method="beam", num_beams=3, rerank_weight=5.0)
    plain = Path(export_model(searchable_workdir, "stablehlo", tmp_path / "plain"))
    ranked = Path(
        export_model(
            searchable_workdir, "stablehlo", tmp_path / "ranked", spec=dataclasses.replace(spec, decode=reranking)
        )
    )
    names, all_names = (set(load_file(folder / "model.safetensors")) for folder in (plain, ranked))
    assert all("/text_encoder/" in name or "/joint_embedding/" in name for name in all_names - names)
    assert not any("/text_encoder/" in name for name in names) and names < all_names
    pixels, source = read_pixels(3), load_source(plain)
    captioner = source.Captioner(plain)
    features = captioner.encode_program(captioner.weights, pixels)
    assert features["memory"].shape[0] == len(pixels)
    np.testing.assert_allclose(np.linalg.norm(features["embedding"], axis=-1), 1, rtol=1e-5)
    captioner = source.Captioner(ranked)
    tokens, _ = captioner.caption_program(captioner.weights, pixels)
    expected = caption_jax.load(searchable_workdir, decode_config=reranking).caption([*pixels])
    texts = [source.decode_text(ids, captioner.tokens) for ids in tokens.tolist()]
    assert texts == [caption.text for caption in expected]


@pytest.mark.slow
def test_the_captioner_runs_in_an_environment_with_jax_alone(tmp_path):
    write_varied_model(tmp_path / "run", {"decode.method": "beam", "decode.num_beams": 3})
    folder = Path(export_model(tmp_path / "run", "stablehlo", tmp_path / "out"))
    images = write_photographs(tmp_path / "images", 50, 32)
    python = make_environment(tmp_path / "environment", "jax", "flatbuffers", "numpy", "pillow")
    captions = caption_jax.load(tmp_path / "run").caption(images)
    assert run_captioner(python, folder, images) == [
        f"{path}\t{caption.text}" for path, caption in zip(images, captions, strict=True)
    ]
    (script,) = (text for text in read_python_blocks(ROOT / "docs" / "export.md") if "export.deserialize" in text)
    assert len(script.splitlines()) <= 30
    (tmp_path / "script.py").write_text(script)
    np.save(tmp_path / "pixels.npy", [np.asarray(Image.open(path)) for path in images])
    printed = run_script(python, tmp_path / "script.py", folder, tmp_path / "pixels.npy")
    assert printed == [caption.text for caption in captions]


def test_consensus_is_refused_with_a_remedy(tmp_path):
    write_varied_model(tmp_path / "run")
    config = small_run.get_config().unlock()
    config.decode.update({"method": "beam", "consensus_weight": 2.0})
    with pytest.raises(ConfigError, match=r"--to=stablehlo .*add --config.decode.consensus_weight=0.0 to export"):
        export_model(tmp_path / "run", "stablehlo", tmp_path / "out", spec=RunSpec.from_config(config))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["torch_captioner", "stablehlo_captioner", "onnx_captioner"])
def test_captioners_are_single_files_without_our_packages(name):
    source = read_captioner(name)
    compile(source, "captioner.py", "exec")
    assert "caption_jax" not in source and source.count("def load_pixels(") == 1
    assert source.index("import numpy as np") < source.index("RESAMPLING =") < source.index("class Captioner")


def test_an_image_that_cannot_be_read_does_not_end_the_script(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    paths = [str(path) for path in (*write_photographs(tmp_path / "images", 2, 8), tmp_path / "bad.jpg", "missing.jpg")]
    monkeypatch.setattr("sys.argv", ["captioner.py", *paths[2:], *paths[:2]])
    with pytest.raises(SystemExit, match="1"):
        print_captions(lambda images: [str(Image.open(image).size) for image in images])
    output = capsys.readouterr()
    assert output.out.splitlines() == [f"{path}\t(8, 8)" for path in paths[:2]]
    assert [line.partition(":")[0] for line in output.err.splitlines()] == paths[2:]


def test_tokens_are_joined_as_bytes(tmp_path):
    write_varied_model(tmp_path / "run")
    vocabulary = read_model(tmp_path / "run").description.vocabulary
    tokens, rng = token_bytes(vocabulary), np.random.default_rng(0)
    for ids in rng.integers(0, vocabulary.size, (50, 12)).tolist():  # most end within a character
        assert decode_text(ids, tokens) == vocabulary.decode(ids)
    assert decode_text(vocabulary.encode("a red box é", 12).tolist(), tokens) == "a red box é"

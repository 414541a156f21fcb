"""`TextEncoder`, and RoBERTa weights in all published formats."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from roberta_folder import WEIGHT_FORMATS, torch_state, write_folder
from roberta_peers import BIN_SETTINGS
from safetensors.numpy import load_file, save_file
from seeded_weights import seeded_array

from caption_jax.errors import WeightsError
from caption_jax.models.roberta import Roberta, RobertaSettings
from caption_jax.models.text_encoder import TextEncoder
from caption_jax.pretrained.roberta_weights import load_roberta

SETTINGS = RobertaSettings(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=20,
    type_vocab_size=1,
    initializer_range=0.3,
)
IDS = jnp.array([[0, 5, 9, 33, 2, 1, 1], [0, 7, 8, 59, 4, 11, 2]])
MASK = IDS != 1
OUTPUT_BIAS = np.linspace(-1, 1, 60, dtype=np.float32)


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.jit(Roberta(SETTINGS).init)(jax.random.key(3), IDS, MASK)["params"]


def make_encoder(params, width=8):
    encoder = TextEncoder(SETTINGS, width)
    variables = jax.jit(encoder.init)(jax.random.key(0), IDS, MASK)
    return encoder, {"params": {**variables["params"], "roberta": params}}


def test_the_vector_is_the_projected_mean_of_the_hidden_states(params):
    encoder, variables = make_encoder(params)
    features = jax.jit(encoder.apply)(variables, IDS, MASK)
    expected = jax.jit(Roberta(SETTINGS).apply)({"params": params}, IDS, MASK)
    np.testing.assert_allclose(features.tokens, expected, atol=1e-6)
    kernel = variables["params"]["dense"]["kernel"]
    mean = np.stack([np.asarray(row)[np.asarray(mask)].mean(0) for row, mask in zip(expected, MASK, strict=True)])
    np.testing.assert_allclose(features.vector, mean @ kernel, atol=1e-5)


def test_padding_has_no_effect(params):
    encoder, variables = make_encoder(params)
    run = jax.jit(encoder.apply)
    features = run(variables, IDS, MASK)
    longer = jnp.pad(IDS, ((0, 0), (0, 4)), constant_values=1)
    other_ids = jnp.where(jnp.pad(MASK, ((0, 0), (0, 4))), longer, 17)  # masked ids that are not pads
    for ids in (longer, other_ids):
        padded = run(variables, ids, longer != 1)
        np.testing.assert_allclose(padded.vector, features.vector, atol=1e-5)
        np.testing.assert_allclose(padded.tokens[:, :7][MASK], features.tokens[MASK], atol=1e-5)


def test_remat_gives_the_same_gradient(params):
    def gradient(remat):
        encoder = TextEncoder(SETTINGS, 8, remat=remat)
        _, variables = make_encoder(params)
        return jax.jit(jax.grad(lambda v: (encoder.apply(v, IDS, MASK).vector ** 2).sum()))(variables)

    stored_activations, recomputed = gradient(False), gradient(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), stored_activations, recomputed)


def test_dropout_depends_on_the_key(params):
    encoder, variables = make_encoder(params)
    run = jax.jit(lambda key: encoder.apply(variables, IDS, MASK, train=True, rngs={"dropout": key}).vector)
    first, second = (run(jax.random.key(k)) for k in (0, 1))
    assert not np.allclose(first, second)


def test_too_many_tokens_are_rejected(params):
    encoder, variables = make_encoder(params)
    ids = jnp.full((1, 19), 5)
    with pytest.raises(ValueError, match="positions for 18"):
        encoder.apply(variables, ids, ids != 1)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_all_published_formats_are_read(tmp_path, params, weight_format):
    loaded = load_roberta(str(write_folder(tmp_path, weight_format, SETTINGS, params, OUTPUT_BIAS)))
    assert loaded.sizes == SETTINGS
    if weight_format == "flax safetensors":  # encoder only
        assert loaded.output_bias is None
    else:
        np.testing.assert_array_equal(loaded.output_bias, OUTPUT_BIAS)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, jax.device_get(params))


def test_a_hub_repository_is_read_as_a_folder(tmp_path, params, monkeypatch):
    import huggingface_hub

    requested = []

    def snapshot_download(name, allow_patterns):
        requested.append(name)
        if name == "nobody/nothing":
            raise OSError("no such repository")
        return str(write_folder(tmp_path, "torch safetensors", SETTINGS, params, OUTPUT_BIAS))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded, expected = load_roberta("roberta-base"), load_roberta(str(tmp_path))
    assert requested == ["roberta-base"]
    np.testing.assert_array_equal(loaded.output_bias, expected.output_bias)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing' is not a local folder.*no such repository"):
        load_roberta("nobody/nothing")


def test_incompatible_weights_are_rejected(tmp_path, params):
    write_folder(tmp_path, "torch safetensors", SETTINGS, params, OUTPUT_BIAS)
    config = {**dataclasses.asdict(SETTINGS), "model_type": "roberta", "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="encoder/layer/2/attention"):
        load_roberta(str(tmp_path))
    config = {**dataclasses.asdict(SETTINGS), "model_type": "roberta", "vocab_size": 61}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lm_head.bias has shape \(60,\); config.json implies \(61,\)"):
        load_roberta(str(tmp_path))


def test_folders_without_supported_weights_are_rejected(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(FileNotFoundError, match=r"flax_model\.msgpack"):
        load_roberta(str(tmp_path))
    for config, message in (
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "roberta", "is_decoder": True}, "is_decoder=true"),
        ({"model_type": "roberta", "hidden_act": "mish"}, r"config\.json: .*hidden_act is 'mish'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightsError, match=message):
            load_roberta(str(tmp_path))


# A PyTorch RobertaForMaskedLM with random weights, written by save_pretrained, and its hidden states.
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "roberta_torch"


def test_a_folder_saved_by_torch_is_read():
    loaded, golden = load_roberta(str(GOLDEN)), np.load(GOLDEN / "expected.npz")
    encoder = TextEncoder(loaded.sizes, 8)
    ids, mask = golden["ids"], golden["ids"] != 1
    params = encoder.init(jax.random.key(0), ids, mask)["params"]
    features = encoder.apply({"params": {**params, "roberta": loaded.params}}, ids, mask)
    np.testing.assert_allclose(features.tokens[mask], golden["hidden"][mask], atol=1e-5)


def test_a_pytorch_bin_file_is_read_without_torch():
    """The file contains the `seeded_weights` of `roberta_peers.py` in PyTorch's format from before 2020."""
    loaded = load_roberta(str(GOLDEN.parent / "roberta_bin"))
    assert loaded.sizes == RobertaSettings(**BIN_SETTINGS) and loaded.source.endswith("pytorch_model.bin")
    state = torch_state(traverse_util.flatten_dict(loaded.params, sep="."))
    assert len(state) == 21
    for name, value in state.items():
        np.testing.assert_array_equal(value, seeded_array(name, value.shape), err_msg=name)
    np.testing.assert_array_equal(loaded.output_bias, seeded_array("lm_head.bias", (12,)))


def test_old_parameter_names_and_bfloat16_weights_are_read(tmp_path, params):
    write_folder(tmp_path, "torch safetensors", SETTINGS, params)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        end = next((end for end in old if name.endswith(end)), "")
        tensors[name.removesuffix(end) + old.get(end, "")] = value.astype(ml_dtypes.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_roberta(str(tmp_path))
    for restored, written in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        assert restored.dtype == np.float32
        np.testing.assert_array_equal(restored, np.asarray(written).astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.torch
def test_a_folder_saved_by_the_installed_transformers_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    model = RobertaForMaskedLM(RobertaConfig(**dataclasses.asdict(SETTINGS))).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path)
    loaded = load_roberta(str(tmp_path))
    assert loaded.sizes == SETTINGS
    np.testing.assert_array_equal(loaded.output_bias, model.lm_head.bias.detach())
    hidden = jax.jit(Roberta(SETTINGS).apply)({"params": loaded.params}, IDS, MASK)
    with torch.no_grad():
        expected = model.roberta(torch.tensor(np.array(IDS)), torch.tensor(np.array(MASK))).last_hidden_state
    np.testing.assert_allclose(hidden[MASK], expected[np.array(MASK)], atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("shards", [1, 2])
def test_pytorch_bin_files_in_the_current_format_are_read(tmp_path, params, shards):
    torch = pytest.importorskip("torch")
    write_folder(tmp_path, "torch safetensors", SETTINGS, params, OUTPUT_BIAS)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    files = {f"pytorch_model-{n}.bin": sorted(tensors)[n::shards] for n in range(shards)}
    if shards == 1:
        files = {"pytorch_model.bin": sorted(tensors)}
    for file, names in files.items():
        torch.save({name: torch.tensor(tensors[name]) for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    if shards > 1:
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_roberta(str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, jax.device_get(params))
    np.testing.assert_array_equal(loaded.output_bias, OUTPUT_BIAS)


@pytest.mark.torch
def test_the_golden_file_matches_torch():
    torch = pytest.importorskip("torch")
    from transformers import RobertaModel

    golden = np.load(GOLDEN / "expected.npz")
    model = RobertaModel.from_pretrained(GOLDEN, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = model(torch.tensor(golden["ids"]), torch.tensor(golden["ids"] != 1)).last_hidden_state
    np.testing.assert_allclose(hidden.numpy(), golden["hidden"], atol=1e-5)

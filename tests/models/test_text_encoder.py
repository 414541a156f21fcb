"""TextEncoder against transformers' own model, and weights in every published form."""

from __future__ import annotations

import json
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file
from transformers import FlaxRobertaModel, RobertaConfig

from caption_jax.models.text_encoder import TextEncoder
from caption_jax.pretrained.roberta_weights import load_roberta

CONFIG = RobertaConfig(
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
def reference() -> FlaxRobertaModel:
    return FlaxRobertaModel(CONFIG, seed=3, add_pooling_layer=False)


def encoder_variables(params, width=8):
    encoder = TextEncoder(CONFIG, width)
    variables = encoder.init(jax.random.key(0), IDS, MASK)
    return encoder, {"params": {**variables["params"], "roberta": params}}


def test_equals_transformers(reference):
    encoder, variables = encoder_variables(reference.params)
    features = encoder.apply(variables, IDS, MASK)
    expected = reference(IDS, MASK).last_hidden_state
    np.testing.assert_allclose(features.tokens, expected, atol=1e-6)
    kernel = variables["params"]["dense"]["kernel"]
    mean = np.stack([np.asarray(row)[np.asarray(mask)].mean(0) for row, mask in zip(expected, MASK, strict=True)])
    np.testing.assert_allclose(features.vector, mean @ kernel, atol=1e-5)


def test_pads_change_nothing(reference):
    encoder, variables = encoder_variables(reference.params)
    features = encoder.apply(variables, IDS, MASK)
    longer = jnp.pad(IDS, ((0, 0), (0, 4)), constant_values=1)
    junk = jnp.where(jnp.pad(MASK, ((0, 0), (0, 4))), longer, 17)  # the mask decides, not the id
    for ids in (longer, junk):
        padded = encoder.apply(variables, ids, longer != 1)
        np.testing.assert_allclose(padded.vector, features.vector, atol=1e-5)
        np.testing.assert_allclose(padded.tokens[:, :7][MASK], features.tokens[MASK], atol=1e-5)


def test_remat_gives_the_same_gradient(reference):
    def gradient(remat):
        encoder = TextEncoder(CONFIG, 8, remat=remat)
        _, variables = encoder_variables(reference.params)
        return jax.grad(lambda v: (encoder.apply(v, IDS, MASK).vector ** 2).sum())(variables)

    plain, recomputed = gradient(False), gradient(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), plain, recomputed)


def test_dropout_only_in_training(reference):
    encoder, variables = encoder_variables(reference.params)
    first, second = (
        encoder.apply(variables, IDS, MASK, train=True, rngs={"dropout": jax.random.key(k)}).vector for k in (0, 1)
    )
    assert not np.allclose(first, second)


def test_too_long_a_text_is_refused(reference):
    encoder, variables = encoder_variables(reference.params)
    ids = jnp.full((1, 19), 5)
    with pytest.raises(ValueError, match="positions for 18"):
        encoder.apply(variables, ids, ids != 1)


def write_folder(folder: Path, form: str, params) -> Path:
    flat = {name: np.asarray(value) for name, value in traverse_util.flatten_dict(params, sep=".").items()}
    (folder / "config.json").write_text(json.dumps({**CONFIG.to_dict(), "model_type": "roberta"}))
    if form == "msgpack":
        tree = {"roberta": jax.tree.map(np.asarray, params), "lm_head": {"bias": OUTPUT_BIAS}}
        (folder / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    elif form == "flax safetensors":
        save_file({f"roberta.{name}": value for name, value in flat.items()}, folder / "model.safetensors")
    else:
        tensors = {f"roberta.{n}": v for n, v in map(torch_layout, flat.items())}
        tensors |= {
            "lm_head.bias": OUTPUT_BIAS,
            "roberta.embeddings.position_ids": np.arange(20)[None],
            "roberta.pooler.dense.weight": np.zeros((16, 16), np.float32),
        }
        names = sorted(tensors)
        files = {"model.safetensors": names}
        if form == "sharded torch safetensors":
            files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
            index = {"weight_map": {name: file for file, names in files.items() for name in names}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for file, names in files.items():
            save_file({name: np.ascontiguousarray(tensors[name]) for name in names}, folder / file)
    return folder


def torch_layout(item: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
    path, leaf = item[0].rsplit(".", 1)
    value = item[1].T if leaf == "kernel" else item[1]
    return f"{path}.{'bias' if leaf == 'bias' else 'weight'}", value


@pytest.mark.parametrize("form", ["msgpack", "flax safetensors", "torch safetensors", "sharded torch safetensors"])
def test_reads_every_published_form(tmp_path, reference, form):
    loaded = load_roberta(str(write_folder(tmp_path, form, reference.params)))
    assert loaded.config.hidden_size == 16
    if form == "flax safetensors":  # has an encoder only
        assert loaded.output_bias is None
    else:
        np.testing.assert_array_equal(loaded.output_bias, OUTPUT_BIAS)
    encoder, variables = encoder_variables(loaded.params)
    expected = reference(IDS, MASK).last_hidden_state
    np.testing.assert_allclose(encoder.apply(variables, IDS, MASK).tokens, expected, atol=1e-6)


def test_a_hub_name_is_read_as_a_folder_is(tmp_path, reference, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        if name == "nobody/nothing":
            raise OSError("no such repository")
        return str(write_folder(tmp_path, "torch safetensors", reference.params))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded, read = load_roberta("roberta-base"), load_roberta(str(tmp_path))
    assert asked == ["roberta-base"]
    np.testing.assert_array_equal(loaded.output_bias, read.output_bias)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, read.params)
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing' is neither.*no such repository"):
        load_roberta("nobody/nothing")


def test_weights_that_do_not_fit_are_named(tmp_path, reference):
    write_folder(tmp_path, "torch safetensors", reference.params)
    config = {**CONFIG.to_dict(), "model_type": "roberta", "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="encoder/layer/2/attention"):
        load_roberta(str(tmp_path))
    config = {**CONFIG.to_dict(), "model_type": "roberta", "vocab_size": 61}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"word_embeddings.*\(60, 16\).*\(61, 16\)"):
        load_roberta(str(tmp_path))


def test_a_folder_without_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(FileNotFoundError, match=r"flax_model\.msgpack"):
        load_roberta(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="bert"):
        load_roberta(str(tmp_path))


# A RobertaForMaskedLM of torch with random weights, saved by its own save_pretrained, and its hidden states.
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "roberta_torch"


def test_reads_a_folder_saved_by_torch():
    loaded, golden = load_roberta(str(GOLDEN)), np.load(GOLDEN / "expected.npz")
    encoder = TextEncoder(loaded.config, 8)
    ids, mask = golden["ids"], golden["ids"] != 1
    params = encoder.init(jax.random.key(0), ids, mask)["params"]
    features = encoder.apply({"params": {**params, "roberta": loaded.params}}, ids, mask)
    np.testing.assert_allclose(features.tokens[mask], golden["hidden"][mask], atol=1e-5)


@pytest.mark.torch
def test_golden_is_what_torch_computes():
    torch = pytest.importorskip("torch")
    from transformers import RobertaModel

    golden = np.load(GOLDEN / "expected.npz")
    model = RobertaModel.from_pretrained(GOLDEN, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = model(torch.tensor(golden["ids"]), torch.tensor(golden["ids"] != 1)).last_hidden_state
    np.testing.assert_allclose(hidden.numpy(), golden["hidden"], atol=1e-5)

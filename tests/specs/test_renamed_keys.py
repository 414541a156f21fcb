"""Former names of config keys, values and modules work for one release."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags
from small_run import ROOT

from caption_jax.config import default_config
from caption_jax.runs import weights
from caption_jax.runs.checkpoints import Checkpoints
from caption_jax.runs.workdir import read_spec
from caption_jax.specs import RunSpec

FORMER_KEYS = {
    "data.fit": ("crop", "data.resize"),
    "optimizer.accumulation": (2, "optimizer.grad_accum_steps"),
    "decode.beams": (3, "decode.num_beams"),
    "decode.draws": (4, "decode.num_samples"),
    "decode.double_tokens": ("forbid", "decode.immediate_repeats"),
    "model.shared_space.width": (64, "model.joint_embedding.width"),
    "model.context.slots": (0, "model.context.max_texts"),
}


@pytest.mark.parametrize("former", FORMER_KEYS)
def test_former_keys_in_config_files_are_converted_with_a_warning(former):
    config, (value, current) = default_config(), FORMER_KEYS[former]
    section_path, _, key = former.rpartition(".")
    with pytest.warns(FutureWarning, match=rf"is now '{current.split('.')[1 if 'width' in current else -1]}'"):
        section = config
        for name in section_path.split("."):
            section = section[name]
        setattr(section, key, value)
    spec = RunSpec.from_config(config)
    assert functools.reduce(getattr, current.split("."), spec) == value


def test_former_values_are_converted_with_a_warning():
    config = default_config()
    with pytest.warns(FutureWarning, match="resize='squash' is now 'stretch'"):
        config.data.resize = "squash"
    assert RunSpec.from_config(config).data.resize == "stretch"


def test_former_keys_in_flags_are_converted_with_a_warning(monkeypatch):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    command = ["main.py", f"--config={ROOT / 'configs' / 'shapes.py'}", "--config.decode.beams=7"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.warns(FutureWarning, match="'beams' is now 'num_beams'"):
        values(command)
    assert RunSpec.from_config(values.config).decode.num_beams == 7


def test_unknown_keys_are_errors():
    with pytest.raises(AttributeError, match="beems"):
        default_config().decode.beems = 1


def test_stored_configs_from_earlier_releases_are_read_without_a_warning(tmp_path, recwarn):
    spec = {"data": {"fit": "squash"}, "decode": {"beams": 7}, "model": {"shared_space": {"width": 32}}}
    spec["optimizer"] = {"rules": [["shared_space/.*", {"lr": 0.5}], ["(?!shared_space).*", {}]]}
    (tmp_path / "config.json").write_text(json.dumps({"version": 2, "spec": spec}))
    restored = read_spec(tmp_path)
    assert (restored.data.resize, restored.decode.num_beams, restored.model.joint_embedding.width) == ("stretch", 7, 32)
    assert [pattern for pattern, _ in restored.optimizer.rules] == ["joint_embedding/.*", "(?!joint_embedding).*"]
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_weights_and_checkpoints_from_earlier_releases_are_converted(tmp_path):
    former = {
        "params": {"shared_space": {"log_scale": np.float32([2.0])}, "decoder": {"bias": np.zeros(3, np.float32)}}
    }
    current = {"params": {"joint_embedding" if k == "shared_space" else k: v for k, v in former["params"].items()}}
    (tmp_path / "model.safetensors").write_bytes(weights.to_safetensors(former))
    restored, _ = weights.read_safetensors(epath.Path(tmp_path / "model.safetensors"))
    np.testing.assert_equal(restored, current)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, former, {"moments": former["params"]}, {})
    checkpoints.wait()
    restored = checkpoints.restore(current, {"moments": current["params"]})
    checkpoints.close()
    np.testing.assert_equal(restored.weights, current)
    np.testing.assert_equal(restored.train, {"moments": current["params"]})

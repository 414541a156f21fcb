"""The compute dtype is bfloat16 only on devices that compute in it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import jax
import pytest

from caption_jax.runs import description
from caption_jax.runs.description import compute_dtype

V100 = SimpleNamespace(device_kind="Tesla V100", compute_capability="7.0")
T4 = SimpleNamespace(device_kind="Tesla T4", compute_capability="7.5")
A100 = SimpleNamespace(device_kind="NVIDIA A100", compute_capability="8.0")
BLACKWELL = SimpleNamespace(device_kind="NVIDIA B200", compute_capability="10.0")
MI300 = SimpleNamespace(device_kind="AMD MI300X", compute_capability="gfx942")
TPU = SimpleNamespace(device_kind="TPU v5 lite")


@pytest.fixture
def use(monkeypatch):
    """A function that simulates the devices of this process."""

    def use_devices(backend: str, *devices: SimpleNamespace) -> None:
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(jax, "local_devices", lambda: list(devices))

    description._warn_about_bfloat16.cache_clear()
    return use_devices


@pytest.mark.parametrize(
    ("backend", "devices", "expected"),
    [
        ("gpu", [V100], "float32"),
        ("gpu", [A100, T4], "float32"),
        ("gpu", [A100], "bfloat16"),
        ("gpu", [BLACKWELL], "bfloat16"),
        ("gpu", [MI300], "bfloat16"),
        ("tpu", [TPU], "bfloat16"),
        ("cpu", [SimpleNamespace(device_kind="cpu")], "float32"),
    ],
)
def test_auto_depends_on_the_device(use, caplog, backend, devices, expected):
    use(backend, *devices)
    assert compute_dtype("auto") == expected
    assert compute_dtype("float32") == "float32"
    assert not caplog.records


def test_explicit_bfloat16_on_a_gpu_without_it_is_used_with_one_warning(use, caplog):
    use("gpu", T4)
    with caplog.at_level(logging.WARNING):
        assert [compute_dtype("bfloat16") for _ in range(3)] == ["bfloat16"] * 3
    (record,) = caplog.records
    assert record.getMessage().startswith("config.dtype=bfloat16, but Tesla T4 has no instructions for it")
    caplog.clear()
    use("gpu", A100)
    compute_dtype("bfloat16")
    assert not caplog.records

"""Topologies are parsed from names. Unknown names and missing compilers are errors."""

from __future__ import annotations

import importlib.util

import pytest

from caption_jax.planning.topology import parse_topology


def test_names_specify_the_chip_and_the_shape():
    topology = parse_topology("v5e:16x16")
    assert (topology.chip.name, topology.size, topology.dtype) == ("v5e", 256, "bfloat16")
    assert parse_topology("v5p:2x2x4").size == 16
    gpus = parse_topology("h100:8")
    assert (gpus.chip.name, gpus.size, gpus.dtype) == ("h100", 8, "bfloat16")
    assert (parse_topology("cpu:8").chip, parse_topology("cpu:8").dtype) == (None, "float32")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5litepod-256", "v5e:16x16"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5litepod-1", "v5e:1x1"),
        ("v5e-256", "v5e:16x16"),
        ("v6e-8", "v6e:2x4"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-32", "v5p:2x2x4"),
        ("v5p-1024", "v5p:8x8x8"),
        ("h100-8", "h100:8"),
    ],
)
def test_names_of_cloud_tpu_are_accepted(name, expected):
    topology = parse_topology(name)
    assert topology == parse_topology(expected) and topology.name == expected


@pytest.mark.parametrize(
    "name",
    [
        "v5e-6",
        "v5p-9",
        "h100:2x2",
        "h100-2x2",
        "h100",
        "",
        "v7:2x2",
        "v5e",
        "v5e:16",
        "v5e:4x0",
        "v5p:4x4",
        "cpu:2x2",
        "cpu:",
        "v5e:4x4x",
    ],
)
def test_errors_for_unknown_names_list_examples(name):
    with pytest.raises(ValueError, match=r"cpu:8.*v5e:16x16.*v6e:16x16"):
        parse_topology(name)


def test_the_error_for_too_many_cpu_devices_names_the_flag():
    with pytest.raises(ValueError, match="xla_force_host_platform_device_count=4096"):
        parse_topology("cpu:4096").devices()


def test_the_error_for_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'caption-jax\[tpu\]'"):
        parse_topology("v5e:2x2").devices()

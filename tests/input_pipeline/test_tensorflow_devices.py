"""Accelerators are reserved for JAX by hiding them from TensorFlow."""

from __future__ import annotations

import pytest

from input_pipeline.tensorflow_devices import keep_tensorflow_off_accelerators


def test_accelerators_are_hidden_from_tensorflow(monkeypatch):
    import tensorflow as tf

    hidden = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind)))
    keep_tensorflow_off_accelerators("a test")
    assert sorted(hidden) == [([], "GPU"), ([], "TPU")]


def test_an_accelerator_in_use_by_tensorflow_is_an_error(monkeypatch):
    import tensorflow as tf

    def raise_error(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", raise_error)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    keep_tensorflow_off_accelerators("a test")  # initialised, but without an accelerator
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu:0"])
    with pytest.raises(RuntimeError, match="holds a GPU"):
        keep_tensorflow_off_accelerators("a test")

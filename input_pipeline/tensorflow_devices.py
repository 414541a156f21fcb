"""Restricts TensorFlow to the CPU in a JAX process, where it writes event files and prepares datasets."""

from __future__ import annotations

import os

from input_pipeline.extras import optional_packages


def keep_tensorflow_off_accelerators(purpose: str) -> None:
    """Imports TensorFlow and hides GPUs and TPUs from it, so that it does not allocate their memory.

    Args:
        purpose: see `optional_packages`.

    Raises:
        MissingPackageError: TensorFlow is not installed.
        RuntimeError: TensorFlow has already claimed an accelerator.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides start-up messages about CPU instructions
    with optional_packages(purpose):
        import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError as error:  # devices are already initialised; harmless if there is no accelerator
            if tf.config.get_visible_devices(kind):
                raise RuntimeError(
                    f"TensorFlow holds a {kind} that JAX needs: call keep_tensorflow_off_accelerators() before "
                    "anything else uses TensorFlow"
                ) from error

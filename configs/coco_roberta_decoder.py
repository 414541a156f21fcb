"""COCO captions with a decoder that starts from RoBERTa: as coco.py, with the first six layers of roberta-base.

    python main.py --config=configs/coco_roberta_decoder.py --workdir=WORKDIR --config.data.root=FOLDER

FOLDER is that of coco.py. RoBERTa and its tokenizer come from the Hugging Face hub; without network, give a folder with
config.json, weights, vocab.json and merges.txt: --config.model.decoder.weights=DIR --config.data.tokenizer=DIR.

Self-attention, feed-forward networks, norms, positions and the embedding (rows of the tokens that occur in the training
captions) are RoBERTa's; the cross-attention to the image is fresh. The log lists both. This config has not been trained
on COCO by us.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import coco


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

    # What is RoBERTa's learns at a tenth of the rate of what is fresh; the image encoder as in coco.py.
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 2000
    *encoder, _ = config.optimizer.rules
    layers = r"layer_\d+/(self_attention|feed_forward)(_norm)?/"
    started = rf"decoder/(embedding|position|output_bias|{layers})"
    config.optimizer.rules = (
        *encoder,
        (rf"{started}.*", {"lr": 0.1}),
        (rf"(?!image_encoder/backbone/|{started}).*", {"lr": 1.0}),
    )
    return config.lock()

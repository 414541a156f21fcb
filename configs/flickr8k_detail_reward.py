r"""flickr8k_detail.py, trained on CIDEr-D as in flickr8k_reward.py.

    python main.py --config=configs/flickr8k_detail.py --config.data.root=FOLDER --workdir=runs/detail
    python main.py --config=configs/flickr8k_detail_reward.py --config.data.root=FOLDER \
        --config.init_from=runs/detail --config.data.feature_cache.folder=runs/detail/features --workdir=WORKDIR

CIDEr-D on the dev images (seed 0, bfloat16) rises from 0.530 to 0.582 with greedy decoding, and from 0.544 to 0.576
with five beams; with config.decode.alpha=0.9, from 0.554 to 0.584. All settings were chosen on other images, 500 of the
training split (docs/quality.md).

FOLDER has the same contents as for flickr8k.py, and the weights are those of flickr8k_detail.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.configs import flickr8k_detail, flickr8k_reward


def get_config() -> ConfigDict:
    """Returns the config."""
    config = flickr8k_reward.add_rewards(flickr8k_detail.get_config())
    with config.unlocked():
        config.init_from = "runs/detail"
        config.train.epochs = 8
    return config

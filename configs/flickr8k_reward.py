r"""Flickr8k, trained on CIDEr-D: starts from a run of flickr8k.py, and rewards sampled captions that agree with people.

    python main.py --config=configs/flickr8k.py --config.data.root=FOLDER --workdir=runs/flickr8k
    python main.py --config=configs/flickr8k_reward.py --config.data.root=FOLDER --config.init_from=runs/flickr8k \
        --config.data.feature_cache.folder=runs/flickr8k/features --workdir=WORKDIR

On the dev images, CIDEr-D with greedy decoding rises from 0.450 to 0.531, and with five beams from 0.494 to 0.537. All
settings were chosen on other images, 500 of the training split (docs/quality.md).

FOLDER has the same contents as for flickr8k.py. The second run reads the features that the first one has computed.
docs/training.md#training-on-metrics describes the objective.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.configs import flickr8k


def get_config() -> ConfigDict:
    """Returns the config."""
    config = add_rewards(flickr8k.get_config())
    with config.unlocked():
        config.init_from = "runs/flickr8k"
    return config


def add_rewards(config: ConfigDict) -> ConfigDict:
    """Returns the config of a run with cross-entropy, changed to continue with rewards."""
    config.unlock()
    config.objective.caption_weight = 0.1
    config.objective.label_smoothing = 0.0
    config.objective.terms = ConfigDict(
        {
            "reward": {
                "name": "caption_jax.objectives.sequence_reward:SequenceReward",
                "cider_d": 1.0,
                "function_word_ending": 1.0,
            }
        }
    )
    config.evaluators = ConfigDict({"start": {"name": "caption_jax.evaluation.start_divergence:StartDivergence"}})
    config.optimizer.learning_rate = 3e-4  # a third of that with cross-entropy
    config.optimizer.warmup_steps = 50
    config.train.epochs = 6
    return config.lock()

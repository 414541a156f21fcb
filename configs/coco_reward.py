r"""COCO, trained on CIDEr-D: starts from a run of coco.py, and rewards sampled captions that agree with people.

    python main.py --config=configs/coco.py --workdir=runs/coco --config.data.root=FOLDER
    python main.py --config=configs/coco_reward.py --config.init_from=runs/coco --workdir=WORKDIR \
        --config.data.root=FOLDER

FOLDER has the same contents as for coco.py. The whole encoder is trained from the first step on, at a tenth of the
learning rate of the other parts, which is a tenth of that of the first run. docs/training.md#training-on-metrics
describes the objective.

This config has been tested on the shapes of its arrays, but not trained on COCO yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.configs import coco


def get_config() -> ConfigDict:
    """Returns the config."""
    config = coco.get_config().unlock()
    config.init_from = "runs/coco"
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
    config.optimizer.learning_rate = 1e-4  # a tenth of that with cross-entropy
    config.optimizer.warmup_steps = 500
    config.optimizer.rules = tuple(
        (pattern, {key: value for key, value in rule.items() if key != "from_step"})
        for pattern, rule in config.optimizer.rules
    )
    config.train.epochs = 6
    return config.lock()

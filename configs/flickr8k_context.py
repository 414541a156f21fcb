r"""Flickr8k with context: the model of flickr8k_search.py, with captions of similar images as additional input.

    python main.py --mode=index --workdir=SEARCH --split=train --captions=none
    python main.py --mode=neighbours --workdir=SEARCH --split=train
    python main.py --mode=neighbours --workdir=SEARCH --split=val
    python main.py --config=configs/flickr8k_context.py --config.data.root=FOLDER --config.data.context=SEARCH/index \
        --workdir=WORKDIR
    python main.py --mode=evaluate --workdir=WORKDIR [--context=none|shuffled]

SEARCH is the workdir of flickr8k_search.py, and FOLDER is the one of flickr8k.py; docs/context.md explains context.
Dev set, seed 0, greedy CIDEr-D: 0.483 with context, 0.460 without, 0.389 with the context of another image; a model
trained without context also reaches 0.483. When starting from the weights of SEARCH (--config.init_from=SEARCH, five
epochs), context made no difference. Details: docs/results/flickr8k_search.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.configs import flickr8k_search


def get_config() -> ConfigDict:
    """Returns the config."""
    config = flickr8k_search.get_config()
    config.model.context.max_texts = 5
    config.model.context.form = "tokens"
    return config.lock()

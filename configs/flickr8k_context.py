r"""Flickr8k with context: the model of flickr8k_search.py, with captions of similar images as additional input.

    python main.py --mode=index --workdir=SEARCH --split=train --captions=none
    python main.py --mode=neighbours --workdir=SEARCH --split=train
    python main.py --mode=neighbours --workdir=SEARCH --split=val
    python main.py --config=configs/flickr8k_context.py --config.data.root=FOLDER --config.data.context=SEARCH/index \
        --workdir=WORKDIR
    python main.py --mode=evaluate --workdir=WORKDIR [--context=none|shuffled]

SEARCH is the workdir of a run of flickr8k_search.py, and FOLDER has the same contents as for flickr8k.py. Context is
described in docs/context.md.

On the dev images (seed 0, greedy decoding), CIDEr-D is 0.483 with context, 0.460 without, and 0.389 with the context of
another image. A model trained without context also reaches 0.483. For a model initialised from the weights in SEARCH
and trained for five epochs (--config.init_from=SEARCH), context made no difference. docs/results/flickr8k_search.md has
more results.
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

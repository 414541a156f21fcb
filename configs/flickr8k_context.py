r"""Flickr8k with context: what flickr8k_search.py trains, with captions of similar photographs beside each.

    python main.py --mode=index --workdir=SEARCH --split=train --captions=none
    python main.py --mode=neighbours --workdir=SEARCH --split=train
    python main.py --mode=neighbours --workdir=SEARCH --split=val
    python main.py --config=configs/flickr8k_context.py --config.data.root=FOLDER --config.data.context=SEARCH/index \
        --workdir=WORKDIR
    python main.py --mode=evaluate --workdir=WORKDIR [--context=none|shuffled]

SEARCH is the workdir of flickr8k_search.py, FOLDER that of flickr8k.py; docs/context.md says what context is.
Dev, seed 0: CIDEr-D 0.483 greedy with the context of the image, 0.460 without, 0.389 with another image's; a model that
never had context reaches 0.483 as well. From SEARCH's weights (--config.init_from=SEARCH, five epochs) context changed
nothing. docs/results/flickr8k_search.md has the figures.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import flickr8k_search


def get_config() -> ConfigDict:
    """Returns the config."""
    config = flickr8k_search.get_config()
    config.model.context.slots = 5
    config.model.context.form = "tokens"
    return config.lock()

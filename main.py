"""Train, evaluate and use image captioners.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes
    python main.py --config=configs/shapes.py --workdir=/tmp/shapes --dry_run
    python main.py --mode=evaluate --workdir=/tmp/shapes --split=test
    python main.py --mode=evaluate --workdir=/tmp/shapes --data=FOLDER
    python main.py --mode=tune --workdir=/tmp/shapes --split=val
    python main.py --mode=caption --workdir=/tmp/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=index --workdir=/tmp/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=search --workdir=/tmp/shapes --query='a dog on the beach'
    python main.py --mode=neighbours --workdir=/tmp/shapes --split=train
    python main.py --mode=plan --config=configs/coco.py --workdir=/tmp/coco --topology=v5e:16x16

Keys of the config are overridden as `--config.data.batch_size=64`. All modes but `train` take the config that the
workdir holds, unless another one is named.

The installed command `caption-jax` is the same; caption_jax/cli/ has a file for each mode.
"""

from __future__ import annotations

from caption_jax.cli import command

if __name__ == "__main__":
    command.run(__file__)

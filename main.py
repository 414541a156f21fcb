"""Train, evaluate and use image captioners.

    python main.py --config=configs/shapes.py --workdir=runs/shapes
    python main.py --config=configs/shapes.py --workdir=runs/shapes --dry_run
    python main.py --mode=evaluate --workdir=runs/shapes --split=test
    python main.py --mode=evaluate --workdir=runs/shapes --data=FOLDER
    python main.py --mode=tune --workdir=runs/shapes --split=val
    python main.py --mode=caption --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=index --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=search --workdir=runs/shapes --query='a dog on the beach'
    python main.py --mode=neighbours --workdir=runs/shapes --split=train
    python main.py --mode=plan --config=configs/coco.py --workdir=runs/coco --topology=v5e:16x16

Override config keys with flags such as `--config.data.batch_size=64`. All modes except `train` use the config stored
in the workdir unless `--config` is set.

`--mode=X` runs caption_jax/cli/X.py. The installed command `caption-jax` takes the same flags.
"""

from __future__ import annotations

from caption_jax.cli import command

if __name__ == "__main__":
    command.run(__file__)

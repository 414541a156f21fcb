"""Train, evaluate and use image captioners.

    python main.py --config=configs/shapes.py --workdir=runs/shapes
    python main.py --config=configs/shapes.py --workdir=runs/shapes --dry_run
    python main.py --mode=evaluate --workdir=runs/shapes --split=test
    python main.py --mode=evaluate --workdir=runs/shapes --data=FOLDER
    python main.py --mode=tune --workdir=runs/shapes --split=val
    python main.py --mode=soup --workdir=runs/soup runs/seed0 runs/seed1
    python main.py --mode=caption --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=caption-many --workdir=runs/shapes --out=captions folder/ 'shards/*.tar'
    python main.py --mode=serve --workdir=runs/shapes --port=8000
    python main.py --mode=serve --workdir=runs/shapes --index=runs/shapes/index --image_folder=folder
    python main.py --mode=index --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=index-many --workdir=runs/shapes --out=vectors folder/ 'shards/*.tar'
    python main.py --mode=search --workdir=runs/shapes --query='a dog on the beach'
    python main.py --mode=neighbours --workdir=runs/shapes --split=train
    python main.py --mode=export --workdir=runs/shapes --to=folder
    python main.py --mode=export --workdir=runs/shapes --to=folder --weights=int8
    python main.py --mode=export --workdir=runs/shapes --to=stablehlo
    python main.py --mode=prepare --config=configs/coco.py --config.data.root=COCO --out=prepared
    python main.py --mode=plan --config=configs/coco.py --workdir=runs/coco --topology=v5e:16x16
    python main.py --mode=plan --config=configs/coco.py --workdir=runs/coco --topology=v5e:4x4 --pairs=3000000

Override config keys with flags such as `--config.data.batch_size=64`. All modes except `train` use the config stored
in the workdir unless `--config` is set.

`--mode=X` runs caption_jax/cli/X.py, with underscores for hyphens. The mode may also be the first argument, as in
`python main.py caption ...`; the installed command `caption-jax` and `python -m caption_jax` take the same arguments
(docs/command_line.md).
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"error: caption-jax requires Python 3.11, 3.12 or 3.13, but this is Python {sys.version.split()[0]}")

if __name__ == "__main__":
    from caption_jax.cli import command

    command.run(__file__)

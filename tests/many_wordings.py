"""Scenes of shapes with references in many wordings, on which cross-entropy alone fails.

Two of the five references of an image say that there are some shapes, and the three others describe the scene, each in
its own words. The most probable caption is therefore the same for all images, and says nothing.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

from input_pipeline.sources.shapes_dataset.drawing import draw_scene
from input_pipeline.sources.shapes_dataset.scenes import COLOURS, Group, Scene

SIDES = ("left", "right")
COPIES = {"train": 4, "val": 2}  # images per scene
COMMON = "there are some shapes"


def write_images(folder: Path) -> Path:
    """Writes images of one shape of each colour on each side, and `captions.csv` with five captions per image."""
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for (split, copies), colour, side in itertools.product(COPIES.items(), COLOURS, SIDES):
            scene = Scene(Group(1, "large", colour, "circle"), side)
            for copy in range(copies):
                name = f"{split}_{colour}_{side}_{copy}.png"
                draw_scene(scene, name).save(folder / "images" / name)
                writer.writerows([name, caption, split] for caption in get_captions(scene))
    return folder


def get_captions(scene: Scene) -> tuple[str, ...]:
    """Returns the references of a scene."""
    colour, side = scene.first.colour, scene.side
    return (
        COMMON,
        COMMON,
        f"a {colour} circle on the {side}",
        f"on the {side}, one {colour} circle",
        f"the circle on the {side} is {colour}",
    )


def describes(caption: str, name: str) -> bool:
    """Returns whether a caption is one of the descriptions of the image with a name from `write_images`."""
    _, colour, side, _ = name.split("_")
    return caption in get_captions(Scene(Group(1, "large", colour, "circle"), side))[2:]

"""The TFDS builder of the shapes dataset."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from input_pipeline.extras import optional_packages
from input_pipeline.sources.shapes_dataset.drawing import SIDE, draw_scene, encode_png
from input_pipeline.sources.shapes_dataset.scenes import Scene, generate_scenes

with optional_packages("the shapes dataset"):
    import tensorflow_datasets as tfds


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """Size of the dataset.

    Attributes:
        train: number of scenes in the training split.
        val: number of scenes in the validation split.
        test: number of scenes in the test split.
    """

    train: int
    val: int
    test: int


class CaptionShapes(tfds.core.GeneratorBasedBuilder):
    """Rendered scenes of coloured shapes with five captions each, generated without any download.

    Features have the same names as in TFDS's `coco_captions`. The additional feature `scene` describes the scene as
    JSON.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[ShapesConfig]] = [
        ShapesConfig(name="full", description="For training.", train=6000, val=300, test=300),
        ShapesConfig(name="tiny", description="For tests.", train=192, val=24, test=24),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Rendered scenes of coloured shapes with captions.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "image/id": tfds.features.Scalar(np.int64),
                    "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
                    "scene": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager
        return {name: self._generate_examples(name) for name in ("train", "val", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
        for image_id, scene in generate_split_scenes(self.builder_config, split):
            yield (
                image_id,
                {
                    "image": encode_png(draw_scene(scene, f"shapes picture {image_id}")),
                    "image/id": image_id,
                    "captions": [{"text": caption} for caption in scene.captions()],
                    "scene": json.dumps(dataclasses.asdict(scene)),
                },
            )


def generate_split_scenes(config: ShapesConfig, split: str) -> Iterator[tuple[int, Scene]]:
    """Yields the image ids and scenes of a split. All splits are slices of one stream of distinct scenes."""
    start = {"train": 0, "val": config.train, "test": config.train + config.val}[split]
    stop = start + getattr(config, split)
    return itertools.islice(enumerate(generate_scenes(seed=0)), start, stop)

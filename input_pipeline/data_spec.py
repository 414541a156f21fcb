"""`config.data`: where images and captions come from, and how they become batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import at_least, check_fields, interval, one_of, texts
from input_pipeline.special_tokens import FEWEST_TOKENS

SOURCES = ("shapes", "folder", "tfds")
FITS = ("squash", "crop")
INTERPOLATIONS = ("bilinear", "bicubic", "area")


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """Text files, one image name per line, of each split; "" where there is none."""

    train: str = ""
    val: str = ""
    test: str = ""


@dataclasses.dataclass(frozen=True)
class SplitFractions:
    """Fractions of the images, drawn by a seeded hash of their ids, that form a split where nothing else does."""

    val: float = 0.0
    test: float = 0.0

    def __post_init__(self):
        fraction = interval("[0, 1)", "0 for none")
        check_fields(self, "config.data.split_fractions", val=fraction, test=fraction)
        if self.val + self.test >= 1:
            raise ConfigError(
                f"config.data.split_fractions.val={self.val} and test={self.test} have to leave something to train on: "
                "their sum has to be below 1"
            )


@dataclasses.dataclass(frozen=True)
class FeatureCacheSpec:
    """Training on stored outputs of a part of the image encoder that stays frozen for the whole run."""

    stage: str = ""  # last stage of that part, such as "stage_2" of an EfficientNet; "" for no cache
    views: int = 1  # crops and flips stored per image, drawn by config.augment; epochs take them in turn
    dtype: str = "float16"  # of what is stored: "float16" or "float32"
    folder: str = ""  # local folder, the same for all processes; "" for features/ in the workdir

    def __post_init__(self):
        check_fields(self, "config.data.feature_cache", views=at_least(1), dtype=one_of("float16", "float32"))


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The data of a run."""

    source: str = "shapes"  # "shapes", "folder" (your own images, COCO folders, Karpathy JSON) or "tfds"
    shapes: str = "full"  # shapes source: "full" (6,600 scenes) or "tiny" (240, for tests)
    root: str = ""  # folder source: the folder that `images` and `captions` are relative to
    images: str = "images"  # folder source: folder of images
    captions: tuple[str, ...] = ("captions.csv",)  # folder source: CSV, JSONL, COCO or Karpathy JSON, token.txt
    split_files: SplitFiles = SplitFiles()  # text files, one image name per line
    split_field: str = ""  # name of a CSV column or JSON field that holds the split
    split_fractions: SplitFractions = SplitFractions()  # seeded split by image, when there is nothing else
    tfds_name: str = "coco_captions"  # tfds source: builder name
    tfds_dir: str = ""  # where prepared TFDS data sets live; "" for TFDS's own default
    # "stop" or "skip" when the data is opened and files are missing, captions empty, ..; both print a report. An image
    # that turns out later to be unreadable is masked and reported, whatever this says.
    on_error: str = "stop"
    image_size: int = 224
    fit: str = "squash"  # how an image becomes square: "squash" or "crop" (shorter side resized, centre kept)
    interpolation: str = "bicubic"  # "bilinear", "bicubic" or "area"
    # "train" (byte-level BPE learned on the training captions), a folder with vocab.json and merges.txt, or a hub name
    tokenizer: str = "train"
    vocabulary_size: int = 4000  # size of a trained tokenizer
    lowercase: bool = True
    compact_vocabulary: bool = True  # the decoder predicts only over tokens that occur in the training captions
    max_length: int = 40  # tokens of a caption, <s> and </s> included; longer ones are cut
    captions_per_image: int = 1  # captions of an image in a step; 0 for all
    context: str = ""  # folder of an index with neighbours of the splits, needed where model.context.slots is above 0
    batch_size: int = 32  # images per step, over all devices
    eval_batch_size: int = 32
    workers: int = 2  # threads that read and decode
    prefetch: int = 4  # batches ready ahead of the step
    feature_cache: FeatureCacheSpec = FeatureCacheSpec()  # docs/training.md

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DataSpec:
        """The spec of `config.data` alone, for commands that need no more of a config."""
        parts = {"split_files": SplitFiles, "split_fractions": SplitFractions, "feature_cache": FeatureCacheSpec}
        return cls(**{key: parts[key](**value) if key in parts else value for key, value in values.items()})

    def __post_init__(self):
        check_fields(
            self,
            "config.data",
            source=one_of(*SOURCES),
            shapes=one_of("full", "tiny"),
            captions=texts("files"),
            on_error=one_of("stop", "skip"),
            image_size=at_least(1),
            fit=one_of(*FITS),
            interpolation=one_of(*INTERPOLATIONS),
            vocabulary_size=at_least(FEWEST_TOKENS if self.tokenizer == "train" else 0),
            max_length=at_least(3, "<s>, a token and </s>"),
            captions_per_image=at_least(0, "for all"),
            batch_size=at_least(1),
            eval_batch_size=at_least(1),
            workers=at_least(0, "for none"),
            prefetch=at_least(0, "for none"),
        )

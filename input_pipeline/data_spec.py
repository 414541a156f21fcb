"""`config.data`: the data source, preprocessing and batching of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import at_least, check_fields, fitted_or, interval, one_of, show, strings
from input_pipeline.special_tokens import MIN_VOCABULARY_SIZE

SHARD_SOURCES = ("webdataset", "parquet", "prepared")  # large files with many images each, in the folder `root`
SOURCES = ("shapes", "folder", "tfds", *SHARD_SOURCES)
MIXTURE = "mixture"
RESIZE_MODES = ("stretch", "crop")
OUTSIDE_POLICIES = ("follow", "refuse")
INTERPOLATIONS = ("bilinear", "bicubic", "area")
# Keys that a part of a mixture may set: where its images, captions and splits are, and how they are read.
PART_KEYS = (
    *("source", "shapes", "root", "shards", "images", "outside_files", "captions"),
    *("image_column", "caption_column", "id_column"),
    *("split_files", "split_field", "split_fractions", "held_out_images"),
    *("tfds_name", "tfds_dir", "on_error", "shuffle_window"),
)


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """Text files that list the images of each split, one image name per line; "" if there is no file."""

    train: str = ""
    val: str = ""
    test: str = ""


@dataclasses.dataclass(frozen=True)
class SplitShards:
    """Shards of each split, as names relative to `root` with `*` and braces: `train-{0000..0039}.tar`; "" if none."""

    train: str = ""
    val: str = ""
    test: str = ""


@dataclasses.dataclass(frozen=True)
class SplitFractions:
    """Fractions of the images, assigned by a hash of their ids; used if nothing else defines the splits."""

    val: float = 0.0
    test: float = 0.0

    def __post_init__(self):
        fraction = interval("[0, 1)", "0 for none")
        check_fields(self, "config.data.split_fractions", val=fraction, test=fraction)
        if self.val + self.test >= 1:
            raise ConfigError(
                "config.data.split_fractions must sum to less than 1, so that training images remain; got "
                f"val={self.val} and test={self.test}"
            )


@dataclasses.dataclass(frozen=True)
class FeatureCacheSpec:
    """Cache of the outputs of the frozen part of the image encoder, computed once per image and view."""

    stage: str = ""  # last frozen stage, such as "stage_2" of an EfficientNet; "" to disable the cache
    views: int = 1  # augmented views per image, such as crops, drawn as in config.augment; epochs cycle through them
    dtype: str = "float16"  # dtype of the stored features: "float16" or "float32"
    folder: str = ""  # local folder, shared by all processes; "" for features/ in the workdir

    def __post_init__(self):
        check_fields(
            self, "config.data.feature_cache", views=at_least(1, largest=2**16), dtype=one_of("float16", "float32")
        )


@dataclasses.dataclass(frozen=True)
class PixelCacheSpec:
    """Cache of the decoded and resized training images, written before the first step and read by every epoch."""

    use: str = "never"  # "never" or "always"
    folder: str = ""  # local folder, shared by all processes; "" for pixels/ in the workdir

    def __post_init__(self):
        check_fields(self, "config.data.pixel_cache", use=one_of("never", "always"))


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The data section of a run's config."""

    # "shapes", "folder" (your own images, COCO folders, Karpathy JSON), "tfds", "webdataset" (tar files), "parquet",
    # "prepared" (images of one size, written by the mode `prepare`) or "mixture" (several of them)
    source: str = "shapes"
    # Parts of a mixture: name -> {"weight": relative number of training images, "source": .., "root": .., ..}. Keys
    # that a part does not set have the values of this section (docs/data.md).
    mixture: dict[str, Any] = dataclasses.field(default_factory=dict)
    shapes: str = "full"  # shapes source: "full" (6,600 scenes) or "tiny" (240, for tests)
    root: str = ""  # folder source: base folder of `images` and `captions`; otherwise the folder of shards
    # webdataset, parquet: the shards of each split; empty for all shards in `root`, whose names can specify a split
    shards: SplitShards = SplitShards()
    images: str = "images"  # folder source: image folder
    # folder source: "follow" or "refuse" the links and absolute paths of the dataset that lead outside of `root`
    outside_files: str = "follow"
    # folder source: caption files in any format of docs/data.md, or "*.txt" for text files next to the images; empty
    # for the first file with a standard name, or else text files
    captions: tuple[str, ...] = ()
    # Names of the CSV or Parquet columns or JSON fields with the image and the captions; "" for the names in
    # docs/data.md. Of a webdataset, `image_column` is the extension of the images.
    image_column: str = ""
    caption_column: str = ""
    # webdataset, parquet: JSON field or column with the id of the image; "" for the key of a webdataset, and for the
    # names in docs/data.md; "__url__" for the shard and the key or row, if keys repeat in other shards
    id_column: str = ""
    split_files: SplitFiles = SplitFiles()  # text files, one image name per line
    split_field: str = ""  # name of the CSV column or JSON field that holds the split
    split_fractions: SplitFractions = SplitFractions()  # used if nothing else defines the splits
    # Training images to choose settings on: they become the validation split, and that of the dataset is named "test"
    held_out_images: int = 0
    tfds_name: str = "coco_captions"  # tfds source: builder name
    tfds_dir: str = ""  # directory of prepared TFDS datasets; "" for the TFDS default
    # What to do about missing files, empty captions etc. when the dataset is opened: "stop" or "skip". Both print a
    # report. An image that turns out to be unreadable later is always masked and reported.
    on_error: str = "stop"
    image_size: int = 224
    resize: str = "stretch"  # how an image is made square: "stretch" (changes the aspect ratio) or "crop" (centre crop)
    interpolation: str = "bicubic"  # "bilinear", "bicubic" or "area"
    # "train" (byte-level BPE trained on the training captions), a folder with vocab.json and merges.txt, or a hub name
    tokenizer: str = "train"
    vocabulary_size: int = 4000  # size of a trained tokenizer
    lowercase: bool = True
    compact_vocabulary: bool = True  # the decoder predicts only the tokens that occur in the training captions
    # Tokens per caption, including <s> and </s>; longer captions are truncated. 0 for a length that covers 99 % of the
    # training captions, at most 128.
    max_length: int = 40
    captions_per_image: int = 1  # captions per image per step; 0 for all
    context: str = ""  # index folder with the neighbours of the splits; required if model.context.max_texts > 0
    # Training images that are shuffled together; 0 for all. Otherwise, the row groups or shards are shuffled, and then
    # the images of those next to each other that have about this many, so that each is read once per epoch.
    shuffle_window: int = 0
    batch_size: int = 32  # images per step, over all devices; at most the number of training images
    eval_batch_size: int = 32
    workers: int = 2  # threads or processes that read and decode images
    worker_type: str = "threads"  # "threads", or "processes" if Python's interpreter lock limits the threads
    prefetch: int = 4  # batches prepared ahead of the step
    pixel_cache: PixelCacheSpec = PixelCacheSpec()  # see docs/data.md
    feature_cache: FeatureCacheSpec = FeatureCacheSpec()  # see docs/training.md

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> DataSpec:
        """Builds the spec from the values of `config.data`, for commands that use no other section."""
        nested = {
            "split_files": SplitFiles,
            "shards": SplitShards,
            "split_fractions": SplitFractions,
            "mixture": _to_dict,
            "pixel_cache": PixelCacheSpec,
            "feature_cache": FeatureCacheSpec,
        }
        return cls(**{key: nested[key](**value) if key in nested else value for key, value in values.items()})

    def __post_init__(self):
        check_fields(
            self,
            "config.data",
            source=one_of(*SOURCES, MIXTURE),
            shapes=one_of("full", "tiny"),
            outside_files=one_of(*OUTSIDE_POLICIES),
            captions=strings("files"),
            held_out_images=at_least(0, "for none"),
            on_error=one_of("stop", "skip"),
            image_size=at_least(1, largest=2**15),
            resize=one_of(*RESIZE_MODES),
            interpolation=one_of(*INTERPOLATIONS),
            vocabulary_size=at_least(MIN_VOCABULARY_SIZE if self.tokenizer == "train" else 0, largest=2**22),
            max_length=fitted_or("0 (to fit the captions)", 0, at_least(3, "<s>, a token and </s>", largest=2**16)),
            captions_per_image=at_least(0, "for all"),
            shuffle_window=at_least(0, "for all images"),
            batch_size=at_least(1),
            eval_batch_size=at_least(1),
            workers=at_least(0, "for none", largest=1024),
            worker_type=one_of("threads", "processes"),
            prefetch=at_least(0, "for none", largest=2**16),
        )
        if self.pixel_cache.use == "always" and self.feature_cache.stage:
            raise ConfigError(
                'config.data.pixel_cache.use is "always" and config.data.feature_cache.stage is '
                f"{show(self.feature_cache.stage)}, but training reads either pixels or features: set one of them to "
                '"never" or ""'
            )
        if self.source == MIXTURE:
            self.list_parts()

    def list_parts(self) -> tuple[PartSpec, ...]:
        """Returns the parts of a mixture, in the order of their names.

        Raises:
            ConfigError: there are none, or a key of one is invalid.
        """
        if not self.mixture:
            raise ConfigError(
                'config.data.source is "mixture", but config.data.mixture has no parts: set it to {"NAME": {"source": '
                '"folder", "root": "FOLDER", "weight": 1.0}, ...}'
            )
        return tuple(_make_part(self, name, self.mixture[name]) for name in sorted(self.mixture))

    def report_subject(self, name: str) -> str:
        """Returns the subject of a report of problems in a folder or a split."""
        return name


@dataclasses.dataclass(frozen=True)
class PartSpec(DataSpec):
    """The data section of a part of a mixture.

    Attributes:
        part: name of the part.
        weight: relative number of training images.
    """

    part: str = ""
    weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "config.data", weight=interval("(0, inf)"))

    def report_subject(self, name: str) -> str:
        """Returns the subject of a report of problems in a folder or a split of this part; of all if `name` is ""."""
        subject = f"the part {self.part} of the mixture"
        return f"{subject}, {name}" if name else subject


_PART_KEY = re.compile(rf"config\.data\.(?=(?:{'|'.join((*PART_KEYS, 'weight'))})\b)")


def name_part(message: str, name: str) -> str:
    """Replaces the keys of `config.data` in a message with those of a part of a mixture."""
    return _PART_KEY.sub(f"config.data.mixture.{name}.", message)


def _make_part(data: DataSpec, name: str, values: Any) -> PartSpec:
    key = f"config.data.mixture.{name}"
    if not str(name).isidentifier():
        raise ConfigError(f"config.data.mixture: the name {show(name)} of a part must consist of letters, digits and _")
    if not isinstance(values, Mapping):
        raise ConfigError(
            f'{key} is {show(values)}; it must be a dictionary {{"source": .., "root": .., "weight": ..}}'
        )
    inherited = {field.name: getattr(data, field.name) for field in dataclasses.fields(DataSpec)}
    settings = {"weight": PartSpec.weight, **{part_key: inherited[part_key] for part_key in PART_KEYS}}
    try:
        for part_key, value in values.items():
            _check_part_key(part_key, value, key)
            settings[part_key] = _convert(settings[part_key], value, f"config.data.{part_key}")
        if settings["source"] not in SOURCES:
            raise ConfigError(f"config.data.source must be set to one of {', '.join(SOURCES)}")
        return PartSpec(**{**inherited, **settings, "mixture": {}, "part": name})
    except ConfigError as error:
        raise ConfigError(name_part(str(error), name)) from None


def _check_part_key(name: str, value: Any, key: str) -> None:
    if name == MIXTURE or (name == "source" and value == MIXTURE):
        raise ConfigError(f"{key}.{name}: a part cannot be a mixture; add its parts to config.data.mixture")
    if name in PART_KEYS or name == "weight":
        return
    if name in {field.name for field in dataclasses.fields(DataSpec)}:
        raise ConfigError(f"{key}.{name} must be the same for all parts: set config.data.{name} instead")
    raise ConfigError(f"{key} has no key {show(name)}; its keys are weight, {', '.join(PART_KEYS)}")


def _convert(default: Any, value: Any, key: str) -> Any:
    """Returns a value of a part in the type of the value that it replaces."""
    if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
        fields = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
        for name in value:
            if name not in fields:
                raise ConfigError(f"{key} has no key {show(name)}; its keys are {', '.join(fields)}")
        values = {name: _convert(fields[name], item, f"{key}.{name}") for name, item in value.items()}
        return dataclasses.replace(default, **values)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{key} is {show(value)}; it must be of type {type(default).__name__}")
    return value


def _to_dict(**values: Any) -> dict[str, Any]:
    """Converts nested mappings to dictionaries."""
    return {key: _to_dict(**value) if hasattr(value, "items") else value for key, value in values.items()}

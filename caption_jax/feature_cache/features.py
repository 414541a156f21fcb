"""The feature cache: what a frozen part of the image encoder gives for the training images, computed before they train.

Everything that the features depend on is in a key; its hash names their folder. So features are taken up wherever they
fit, by a run that goes on as by another one with the same `config.data.feature_cache.folder`, and never where they do
not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from caption_jax.augment import augment
from caption_jax.backbones.protocol import stages_up_to
from caption_jax.errors import ConfigError
from caption_jax.parameters.paths import flatten, match_paths, unflatten
from caption_jax.parameters.rules import match_rules
from caption_jax.parameters.sharding import put_batch, replicated
from caption_jax.runs.description import RunDescription
from caption_jax.runs.experiment import Experiment
from caption_jax.runtime.cached_program import CachedProgram
from caption_jax.specs import RunSpec, as_mapping
from caption_jax.specs.extensions import NAME
from caption_jax.telemetry.clock import format_duration
from input_pipeline.files import write_atomically
from input_pipeline.images import ImageError
from input_pipeline.inputs import FeatureFiles, Inputs, Pixels, StoredFeatures, fingerprint
from input_pipeline.prefetch import prefetch_to_device

PyTree = Any

_BACKBONE = "image_encoder/backbone"
_VIEWS = 0x76696577  # sets the random numbers of views apart from those of steps
_LOG_SECONDS = 10.0


def stored_features(experiment: Experiment, variables: PyTree) -> StoredFeatures | None:
    """Returns the features that `spec.data.feature_cache` asks for, after computing those that are missing.

    Args:
        experiment: the run.
        variables: `params` and `batch_stats` of the model.

    Returns:
        Features of the training split; None where the config asks for no cache.

    Raises:
        ValueError: a setting is out of range; a parameter that the features depend on is to be trained (names the
            rule); there is too little room on the disk.
    """
    spec = experiment.spec
    if not spec.data.feature_cache.stage:
        return None
    check_frozen(variables["params"], spec)
    split, frozen = experiment.split("train"), _frozen_part(variables, experiment)
    forward = _make_forward(experiment)
    key = cache_key(experiment, frozen)
    files = _files(experiment, key, jax.eval_shape(forward, frozen, *_forward_arguments(experiment)).shape)
    stage, size = spec.data.feature_cache.stage, files.images * files.image_bytes
    logging.info(
        "features: %s of %d images x %d views, %s %s each: %.2f GB in %s",
        *(stage, files.images, files.views, list(files.shape), files.dtype, size / 1e9, files.folder),
    )
    about = {**experiment.description.cache_key(), **{name: key[name] for name in ("stage", "augment", "dtype")}}
    one_device = experiment.mesh.local_mesh.size == 1
    program = CachedProgram(forward, "features", about) if one_device else jax.jit(forward)
    _compute_missing(experiment, files, program, frozen, key)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("features are computed")
    return StoredFeatures(files, split, spec.seed)


def check_frozen(params: PyTree, spec: RunSpec) -> None:
    """Raises ValueError where a rule trains, at any time of the run, a parameter that cached features depend on."""
    rules = spec.optimizer.rules
    inside = [path for path in flatten(params) if _is_below(path, spec)]
    settings = flatten(match_rules(params, rules))
    trained = [path for path in inside if settings[path].lr > 0]
    if trained:
        which = match_paths(flatten(params), [pattern for pattern, _ in rules], "optimizer.rules", every=True)
        patterns = sorted({rules[which[path]][0] for path in trained})
        raise ConfigError(
            f"config.data.feature_cache.stage={spec.data.feature_cache.stage!r} stores what the image encoder gives "
            f"up to there, but spec.optimizer.rules trains {len(trained)} parameters of that part, such as "
            f"{trained[0]!r}, by the rule {' and '.join(map(repr, patterns))}: freeze them ('lr': 0.0) for the whole "
            "run, or name an earlier stage"
        )


def cache_key(experiment: Experiment, frozen: PyTree) -> dict[str, Any]:
    """All that the features depend on, for JSON.

    Args:
        experiment: the run.
        frozen: `params` and `batch_stats` of the part of the model that computes them.
    """
    spec, description = experiment.spec, experiment.description
    settings, split = spec.data.feature_cache, experiment.split("train")
    drawn = None if spec.augment.is_identity else {"seed": spec.seed, **as_mapping(spec.augment)}
    return {
        "format": 1,
        "stage": settings.stage,
        "views": settings.views,
        "dtype": settings.dtype,
        "augment": drawn,
        "preprocessing": json.loads(description.preprocessing.to_json()),
        "model": {
            **_network_key(description),
            "dtype": str(description.model().image_encoder.dtype),
            "weights": _hash_of(frozen),
        },
        "images": {"split": split.name, "count": len(split), "fingerprint": fingerprint(split)},
    }


def _network_key(description: RunDescription) -> dict[str, Any]:
    encoder = description.spec.model.encoder
    name = as_mapping(description.spec.model)["encoder"].get(NAME)  # the default backbone has none
    return {**({NAME: name} if name else {}), **encoder.network_key(description.backbone_settings)}


def _is_below(path: str, spec: RunSpec) -> bool:
    stages = stages_up_to(spec.model.encoder.stage_names, spec.data.feature_cache.stage)
    return any(path.startswith(f"{_BACKBONE}/{stage}/") for stage in stages)


def _frozen_part(variables: PyTree, experiment: Experiment) -> PyTree:
    """`params` and `batch_stats` of the part that computes the features, as NumPy arrays."""
    part = {}
    for collection in ("params", "batch_stats"):
        flat = flatten(variables[collection])
        part[collection] = unflatten({path: leaf for path, leaf in flat.items() if _is_below(path, experiment.spec)})
    return jax.device_get(jax.device_put(part, replicated(experiment.mesh)))


def _hash_of(variables: PyTree) -> str:
    digest = hashlib.sha256()
    for path, array in sorted(flatten(variables).items()):
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array + 0).tobytes())  # -0.0, which an update of 0 turns into 0.0, is 0.0
    return digest.hexdigest()


def _make_forward(experiment: Experiment) -> Callable:
    """`(variables, images, rows, view) -> features`, of uint8 images whose numbers in the split are `rows`."""
    spec, preprocessing = experiment.spec, experiment.description.preprocessing
    model, settings = experiment.model(), spec.data.feature_cache

    def forward(variables: PyTree, images: jax.Array, rows: jax.Array, view: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(spec.seed), _VIEWS), view)
        pixels = preprocessing.normalise(augment(key, images, spec.augment, rows, model.ops))
        features = model.apply(variables, settings.stage, pixels, method="encode_up_to")
        return features.astype(settings.dtype)

    return forward


def _forward_arguments(experiment: Experiment) -> tuple:
    """Shapes of what the forward takes beside the variables."""
    rows, size = experiment.spec.data.eval_batch_size, experiment.description.preprocessing.size
    images = jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)
    return images, jax.ShapeDtypeStruct((rows,), np.int32), jax.ShapeDtypeStruct((), np.int32)


def _files(experiment: Experiment, key: dict[str, Any], shape: Sequence[int]) -> FeatureFiles:
    """Where the features of that key are or will be."""
    settings = experiment.spec.data.feature_cache
    parent = str(settings.folder or experiment.workdir / "features")
    if "://" in parent:
        raise ConfigError(
            f"features are mapped into memory, which {parent} cannot be: set config.data.feature_cache.folder to a "
            "local folder"
        )
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()[:8]
    if jax.process_count() > 1:  # times of files may differ from machine to machine: the first one's name is taken
        digest = bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(digest, np.uint8)).astype(np.uint8))
    folder = Path(parent).resolve() / digest.hex()
    images = len(experiment.split("train"))
    return FeatureFiles(folder, images, settings.views, tuple(shape[1:]), np.dtype(settings.dtype))


class _Decoded(NamedTuple):
    """Images on the devices, their numbers in the split, and which of them could not be read (why)."""

    images: jax.Array
    rows: jax.Array
    numbers: list[int]
    problems: dict[int, str]


def _compute_missing(
    experiment: Experiment, files: FeatureFiles, forward: Callable, frozen: PyTree, key: dict[str, Any]
) -> None:
    """Writes this process's share of the blocks that are not there yet."""
    mine = files.blocks[jax.process_index() :: jax.process_count()]
    missing = [block for block in mine if not files.has(block)]
    if not missing:
        return
    _make_room(files, len(missing), key)
    mesh = experiment.mesh.local_mesh
    variables = jax.device_put(frozen, replicated(mesh))
    numbers = [number for block in missing for number in files.rows(block)]
    progress = _Progress(len(numbers), files.views)
    block: _Block | None = None
    decoded = prefetch_to_device(_decode(experiment, numbers), lambda d: _put(d, mesh), experiment.spec.data.prefetch)
    with decoded:
        for batch in decoded:
            views = [forward(variables, batch.images, batch.rows, np.int32(view)) for view in range(files.views)]
            features = np.stack([np.asarray(view)[: len(batch.numbers)] for view in views], axis=1)
            for number, values in zip(batch.numbers, features, strict=True):
                block = block or _Block.empty(files, number)
                if block.add(number, values, batch.problems.get(number)):
                    files.write(block.number, block.features, block.problems)
                    block = None
            progress.add(len(batch.numbers))


def _put(decoded: _Decoded, mesh: jax.sharding.Mesh) -> _Decoded:
    images, rows = put_batch((decoded.images, decoded.rows), mesh)
    return decoded._replace(images=images, rows=rows)


def _decode(experiment: Experiment, numbers: Sequence[int]) -> Iterator[_Decoded]:
    """Batches of the images of those numbers; the last one is filled up with black images."""
    data = experiment.spec.data
    pixels = Pixels(experiment.split("train"), experiment.description.preprocessing)
    with ThreadPoolExecutor(max(data.workers, 1)) as pool:
        for start in range(0, len(numbers), data.eval_batch_size):
            chosen = list(numbers[start : start + data.eval_batch_size])
            images = np.zeros((data.eval_batch_size, *pixels.shape), pixels.dtype)
            rows = np.zeros(data.eval_batch_size, np.int32)
            rows[: len(chosen)] = chosen
            problems = {}
            for row, image in enumerate(pool.map(lambda number: _try(pixels, number), chosen)):
                if isinstance(image, ImageError):
                    problems[chosen[row]] = image.reason
                else:
                    images[row] = image
            yield _Decoded(images, rows, chosen, problems)


def _try(pixels: Inputs, number: int) -> np.ndarray | ImageError:
    try:
        return pixels.load(number)
    except ImageError as error:
        return error


@dataclasses.dataclass
class _Block:
    """A block that is being filled, image after image."""

    number: int
    rows: range
    features: np.ndarray
    problems: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(cls, files: FeatureFiles, first: int) -> _Block:
        """The block whose first image is `first`."""
        number = first // files.block_images
        rows = files.rows(number)
        return cls(number, rows, np.zeros((len(rows), files.views, *files.shape), files.dtype))

    def add(self, number: int, values: np.ndarray, problem: str | None) -> bool:
        """Takes an image's views, or why there are none; says whether the block is full."""
        if problem is not None:
            self.problems[number] = problem
        elif np.isfinite(values).all():
            self.features[number - self.rows.start] = values
        else:
            raise ConfigError(
                f"features of image {number} are not finite as {self.features.dtype}: set "
                "config.data.feature_cache.dtype=float32, or look at the encoder's weights"
            )
        return number == self.rows[-1]


def _make_room(files: FeatureFiles, missing: int, key: dict[str, Any]) -> None:
    """Makes the folder, with key.json, if what is missing fits on its disk."""
    files.folder.mkdir(parents=True, exist_ok=True)
    needed = min(missing * files.block_images, files.images) * files.image_bytes
    free = shutil.disk_usage(files.folder).free
    if needed > free:
        raise ConfigError(
            f"the features need {needed / 1e9:.2f} GB more and {files.folder} has {free / 1e9:.2f} GB free: lower "
            "config.data.feature_cache.views, choose a stage with a smaller output, or set its folder to another disk"
        )
    if jax.process_index() == 0:
        write_atomically(files.folder / "key.json", json.dumps(key, indent=2) + "\n")


class _Progress:
    """Says now and then how far the computation is."""

    def __init__(self, images: int, views: int):
        self._images, self._views, self._done = images, views, 0
        self._started = self._said = time.monotonic()

    def add(self, images: int) -> None:
        """Counts images whose views are all computed."""
        self._done += images
        now = time.monotonic()
        if now - self._said < _LOG_SECONDS and self._done < self._images:
            return
        self._said = now
        rate = self._done / max(now - self._started, 1e-9)
        left = format_duration((self._images - self._done) / rate)
        logging.info(
            "features: %d of %d images, %.1f a second (%.1f views), %s left",
            *(self._done, self._images, rate, rate * self._views, left),
        )

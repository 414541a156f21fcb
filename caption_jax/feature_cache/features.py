"""The feature cache, which contains outputs of frozen image encoder stages, computed before training starts.

Features are stored in a folder named after the hash of a cache key, which contains everything that determines them. Any
run with the same key and the same `config.data.feature_cache.folder` reuses them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from caption_jax.augment import augment
from caption_jax.backbones.protocol import stages_up_to
from caption_jax.errors import ConfigError
from caption_jax.feature_cache.cache_folder import choose_folder, find_missing_blocks, prepare_folder
from caption_jax.parameters.paths import flatten, match_paths, unflatten
from caption_jax.parameters.rules import match_rules
from caption_jax.parameters.sharding import put_batch, replicated
from caption_jax.runs.description import RunDescription
from caption_jax.runs.experiment import Experiment
from caption_jax.runtime.cached_program import CachedProgram
from caption_jax.specs import RunSpec, as_mapping
from caption_jax.specs.extensions import NAME
from input_pipeline.images import ImageError
from input_pipeline.inputs import FeatureFiles, StoredFeatures, fingerprint
from input_pipeline.pixel_readers import decode_in_order
from input_pipeline.prefetch import prefetch_to_device

PyTree = Any

_BACKBONE = "image_encoder/backbone"
_VIEW_SALT = 0x76696577  # separates the PRNG keys of views from the keys of training steps


def prepare_features(experiment: Experiment, variables: PyTree) -> StoredFeatures | None:
    """Opens the features configured in `spec.data.feature_cache`, after computing missing ones.

    Args:
        experiment: the experiment of the run.
        variables: `params` and `batch_stats` of the model.

    Returns:
        Features of the training split, or None if the feature cache is disabled.

    Raises:
        ValueError: a setting is invalid, the features depend on a trained parameter (the message contains the rule), or
            there is not enough disk space.
    """
    spec = experiment.spec
    if not spec.data.feature_cache.stage:
        return None
    check_frozen(variables["params"], spec)
    split, frozen = experiment.split("train"), _select_frozen(variables, experiment)
    forward = _make_forward(experiment)
    key = cache_key(experiment, frozen)
    files = _make_files(experiment, key, jax.eval_shape(forward, frozen, *_make_forward_arguments(experiment)).shape)
    stage, size = spec.data.feature_cache.stage, files.images * files.bytes_per_image
    logging.info(
        "features: %s for %d images x %d views, %s %s each, %.2f GB in %s",
        *(stage, files.images, files.views, list(files.shape), files.dtype, size / 1e9),
        str(files.folder).removeprefix(f"{experiment.workdir}/"),
    )
    program_key = {**experiment.description.cache_key(), **{name: key[name] for name in ("stage", "augment", "dtype")}}
    one_device = experiment.mesh.local_mesh.size == 1
    program = CachedProgram(forward, "features", program_key) if one_device else jax.jit(forward)
    _compute_missing(experiment, files, program, frozen, key)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("features are computed")
    return StoredFeatures(files, split, spec.seed)


def check_frozen(params: PyTree, spec: RunSpec) -> None:
    """Raises ConfigError if the features depend on a parameter that is trained at any step of the run."""
    rules = spec.optimizer.rules
    rule_by_path = flatten(match_rules(params, rules))
    trained = [path for path in flatten(params) if _is_cached(path, spec) and rule_by_path[path].lr > 0]
    if trained:
        all_patterns = [pattern for pattern, _ in rules]
        rule_indices = match_paths(flatten(params), all_patterns, "optimizer.rules", require_all=True)
        patterns = sorted({rules[rule_indices[path]][0] for path in trained})
        raise ConfigError(
            f"config.data.feature_cache.stage={spec.data.feature_cache.stage!r} requires all image encoder parameters "
            f"up to that stage to be frozen, but config.optimizer.rules trains {len(trained)} of them, such as "
            f"{trained[0]!r}, through {' and '.join(map(repr, patterns))}: freeze them ('lr': 0.0) for the whole run, "
            "or choose an earlier stage"
        )


def cache_key(experiment: Experiment, frozen: PyTree) -> dict[str, Any]:
    """Returns everything that determines the features, as JSON-serialisable values.

    Args:
        experiment: the experiment of the run.
        frozen: `params` and `batch_stats` of the stages that compute the features.
    """
    spec, description = experiment.spec, experiment.description
    settings, split = spec.data.feature_cache, experiment.split("train")
    limits = spec.limits.image_key()
    augmentation = None if spec.augment.is_identity else {"seed": spec.seed, **as_mapping(spec.augment)}
    return {
        "format": 1,
        "stage": settings.stage,
        "views": settings.views,
        "dtype": settings.dtype,
        "augment": augmentation,
        "preprocessing": json.loads(description.preprocessing.to_json()),
        **({"limits": limits} if limits else {}),
        "model": {
            **_make_network_key(description),
            "dtype": str(description.model().image_encoder.dtype),
            "weights": _hash_weights(frozen),
        },
        "images": {"split": split.name, "count": len(split), "fingerprint": fingerprint(split)},
    }


def _make_network_key(description: RunDescription) -> dict[str, Any]:
    encoder = description.spec.model.encoder
    name = as_mapping(description.spec.model)["encoder"].get(NAME)  # absent for the default backbone
    return {**({NAME: name} if name else {}), **encoder.network_key(description.backbone_settings)}


def _is_cached(path: str, spec: RunSpec) -> bool:
    """Returns whether a parameter belongs to the stages that compute the features."""
    stages = stages_up_to(spec.model.encoder.stage_names, spec.data.feature_cache.stage)
    return any(path.startswith(f"{_BACKBONE}/{stage}/") for stage in stages)


def _select_frozen(variables: PyTree, experiment: Experiment) -> PyTree:
    """Returns `params` and `batch_stats` of the stages that compute the features, as NumPy arrays."""
    frozen = {}
    for collection in ("params", "batch_stats"):
        flat = flatten(variables[collection])
        frozen[collection] = unflatten({path: leaf for path, leaf in flat.items() if _is_cached(path, experiment.spec)})
    return jax.device_get(jax.device_put(frozen, replicated(experiment.mesh)))


def _hash_weights(variables: PyTree) -> str:
    digest = hashlib.sha256()
    for path, array in sorted(flatten(variables).items()):
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array + 0).tobytes())  # converts -0.0 to 0.0, as updates by zero do
    return digest.hexdigest()


def _make_forward(experiment: Experiment) -> Callable:
    """Returns a function that computes the features of one view of a batch of images.

    Its arguments are the variables, uint8 images [batch, height, width, 3], their indices in the split and the view.
    """
    spec, preprocessing = experiment.spec, experiment.description.preprocessing
    model, settings = experiment.model(), spec.data.feature_cache

    def forward(variables: PyTree, images: jax.Array, indices: jax.Array, view: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(spec.seed), _VIEW_SALT), view)
        pixels = preprocessing.normalise(augment(key, images, spec.augment, indices, model.ops))
        features = model.apply(variables, settings.stage, pixels, method="encode_to_stage")
        return features.astype(settings.dtype)

    return forward


def _make_forward_arguments(experiment: Experiment) -> tuple:
    """Returns the shapes of the arguments of the forward function, except for `variables`."""
    batch_size, size = experiment.spec.data.eval_batch_size, experiment.description.preprocessing.size
    images = jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8)
    return images, jax.ShapeDtypeStruct((batch_size,), np.int32), jax.ShapeDtypeStruct((), np.int32)


def _make_files(experiment: Experiment, key: dict[str, Any], shape: Sequence[int]) -> FeatureFiles:
    """Creates the `FeatureFiles` of a cache key, without creating the files.

    Args:
        experiment: the experiment of the run.
        key: the cache key.
        shape: shape of the features of a batch.
    """
    settings = experiment.spec.data.feature_cache
    parent = str(settings.folder or experiment.workdir / "features")
    folder = choose_folder(parent, key, "config.data.feature_cache.folder")
    images = len(experiment.split("train"))
    return FeatureFiles(folder, images, settings.views, tuple(shape[1:]), np.dtype(settings.dtype))


class _DecodedBatch(NamedTuple):
    """A batch of decoded images.

    Attributes:
        images: uint8 [batch, height, width, 3]; padding and unreadable images are black.
        padded_indices: int32 [batch], indices of the images in the split, 0 for padding.
        indices: indices of the images in the split, without padding.
        problems: errors of unreadable images, by index.
    """

    images: jax.Array
    padded_indices: jax.Array
    indices: list[int]
    problems: dict[int, str]


def _compute_missing(
    experiment: Experiment, files: FeatureFiles, forward: Callable, frozen: PyTree, key: dict[str, Any]
) -> None:
    """Computes and writes the missing blocks that are assigned to this process."""
    missing = find_missing_blocks(files)
    if not missing:
        return
    remedy = (
        "lower config.data.feature_cache.views, choose a stage with a smaller output, or set its folder to another disk"
    )
    prepare_folder(files, len(missing), key, remedy)
    mesh, spec = experiment.mesh.local_mesh, experiment.spec
    variables = jax.device_put(frozen, replicated(mesh))
    indices = [index for block in missing for index in files.image_indices(block)]
    block: _Block | None = None
    display = experiment.display
    forward = display.around_first_call(forward, "compiling the encoder")
    batches = _decode_batches(experiment, indices)
    text = f"{files.views} views each" if files.views > 1 else ""
    with (
        prefetch_to_device(batches, lambda batch: _put_on_devices(batch, mesh), spec.data.prefetch) as prefetched,
        display.phase("features", len(indices), "images", text=text) as phase,
    ):
        for batch in prefetched:
            arrays = batch.images, batch.padded_indices
            views = [forward(variables, *arrays, np.int32(view)) for view in range(files.views)]
            features = np.stack([np.asarray(view)[: len(batch.indices)] for view in views], axis=1)
            for index, values in zip(batch.indices, features, strict=True):
                block = block or _Block.empty(files, index)
                if block.add(index, values, batch.problems.get(index)):
                    files.write(block.number, block.features, block.problems)
                    block = None
            phase.advance(len(batch.indices))


def _put_on_devices(batch: _DecodedBatch, mesh: jax.sharding.Mesh) -> _DecodedBatch:
    images, padded_indices = put_batch((batch.images, batch.padded_indices), mesh)
    return batch._replace(images=images, padded_indices=padded_indices)


def _decode_batches(experiment: Experiment, indices: Sequence[int]) -> Iterator[_DecodedBatch]:
    """Yields batches of the images at `indices`. The last batch is padded to the evaluation batch size."""
    data, preprocessing = experiment.spec.data, experiment.description.preprocessing
    decoded = decode_in_order(experiment.split("train"), preprocessing, data, indices)
    with contextlib.closing(decoded):
        for start in range(0, len(indices), data.eval_batch_size):
            batch_indices = list(indices[start : start + data.eval_batch_size])
            images = np.zeros((data.eval_batch_size, preprocessing.size, preprocessing.size, 3), np.uint8)
            padded_indices = np.zeros(data.eval_batch_size, np.int32)
            padded_indices[: len(batch_indices)] = batch_indices
            problems = {}
            for row, index in enumerate(batch_indices):
                image = next(decoded)
                if isinstance(image, ImageError):
                    problems[index] = image.reason
                else:
                    images[row] = image
            yield _DecodedBatch(images, padded_indices, batch_indices, problems)


@dataclasses.dataclass
class _Block:
    """A block of features that is filled one image at a time.

    Attributes:
        number: index of the block.
        rows: indices of its images in the split.
        features: array [images, views, ...].
        problems: errors of unreadable images, by index in the split.
    """

    number: int
    rows: range
    features: np.ndarray
    problems: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(cls, files: FeatureFiles, first: int) -> _Block:
        """Creates the empty block that starts at image index `first`."""
        number = first // files.images_per_block
        rows = files.image_indices(number)
        return cls(number, rows, np.zeros((len(rows), files.views, *files.shape), files.dtype))

    def add(self, index: int, values: np.ndarray, problem: str | None) -> bool:
        """Adds the features of an image, or the error of an unreadable image. Returns whether the block is full."""
        if problem is not None:
            self.problems[index] = problem
        elif np.isfinite(values).all():
            self.features[index - self.rows.start] = values
        else:
            raise ConfigError(
                f"features of image {index} are not finite in {self.features.dtype}: set "
                "config.data.feature_cache.dtype=float32, or check the encoder's weights"
            )
        return index == self.rows[-1]

"""Puts a run together from its config: devices, data, words, pixels, model and pretrained weights."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from caption_jax.backbones.protocol import Settings, stored_settings
from caption_jax.errors import ConfigError
from caption_jax.models.build import roberta_sizes
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.parameters.sharding import make_mesh
from caption_jax.runs import workdir as workdir_files
from caption_jax.runs.artifact import check_no_model
from caption_jax.runs.checkpoints import has_checkpoint
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.transfer import transfer_weights
from caption_jax.specs import DatasetFacts, RunSpec, differences, resolve
from input_pipeline.images import Preprocessing
from input_pipeline.records import Split
from input_pipeline.sources import get_split, open_splits
from input_pipeline.special_tokens import PAD
from input_pipeline.tokenizer import Vocabulary, build_vocabulary

PyTree = Any

_INITIALISERS: dict[int, Callable] = {}  # by description, as long as it lives


@dataclass(frozen=True)
class Experiment:
    """A run's fixed parts. `workdir` holds what `description` says."""

    workdir: epath.Path
    description: RunDescription
    mesh: jax.sharding.Mesh
    splits: dict[str, Split]

    @property
    def spec(self) -> RunSpec:
        """The run's config, validated."""
        return self.description.spec

    def model(self, frozen_norms: frozenset[str] = frozenset()) -> ImageCaptioningModel:
        """The model; see `build_model` for `frozen_norms`."""
        return self.description.model(frozen_norms)

    def resolved(self) -> RunSpec:
        """The spec with what depends on the training data filled in."""
        return resolve(self.spec, DatasetFacts(len(self.split("train"))))

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            DataError: the data has no such split.
        """
        return get_split(self.splits, name)


def start_experiment(spec: RunSpec, workdir: epath.Path) -> Experiment:
    """Prepares a training run in a new workdir, or takes up the one that is there.

    Raises:
        ConfigError: the config contradicts its data, or the run that the workdir holds.
    """
    experiment = prepare_experiment(spec, workdir)
    if jax.process_index() == 0:
        if has_checkpoint(workdir):
            workdir_files.write_spec(workdir, spec, experiment.resolved())
        else:
            workdir_files.write_description(workdir, experiment.description, experiment.resolved())
    return experiment


def prepare_experiment(spec: RunSpec, workdir: epath.Path) -> Experiment:
    """What `start_experiment` returns, without writing anything into the workdir.

    Raises:
        ConfigError: see `start_experiment`.
    """
    mesh = make_mesh(spec.mesh)
    _check_batches(mesh, {"data.eval_batch_size": spec.data.eval_batch_size})
    _check_batches(mesh, {"data.batch_size": spec.data.batch_size}, spec.optimizer.accumulation)
    splits = open_splits(spec.data)
    if "train" not in splits:
        raise ConfigError(f"config.data names no training images: the splits found are {', '.join(sorted(splits))}")
    resuming = has_checkpoint(workdir)  # or it was killed so early that nothing of it is worth keeping
    if not resuming:
        check_no_model(workdir)
    description = _resume(spec, workdir) if resuming else _describe(spec, splits["train"])
    return Experiment(workdir, description, mesh, splits)


def open_experiment(workdir: epath.Path, spec: RunSpec, splits: dict[str, Split] | None = None) -> Experiment:
    """Opens a finished (or running) run to evaluate it, with `spec` in place of the stored one.

    Args:
        workdir: of the run.
        spec: the config.
        splits: the data; None for what the config names.

    Raises:
        FileNotFoundError: the folder is not a run's workdir.
        ValueError: the batches do not divide over the devices that there are now.
    """
    stored = workdir_files.read_description(workdir)
    mesh = make_mesh(spec.mesh)
    _check_batches(mesh, {"data.eval_batch_size": spec.data.eval_batch_size})
    description = RunDescription(spec, stored.model_settings, stored.preprocessing, stored.vocabulary)
    return Experiment(workdir, description, mesh, open_splits(spec.data) if splits is None else splits)


def variable_shapes(description: RunDescription) -> PyTree:
    """Shapes and types of the model's variables, without making them."""
    return {"batch_stats": {}, **jax.eval_shape(*_init_call(description))}


def initial_variables(experiment: Experiment) -> PyTree:
    """Fresh variables from the config's seed, then pretrained weights, then those of `config.init_from`."""
    spec, vocabulary = experiment.spec, experiment.description.vocabulary
    variables = init_variables(experiment.description)
    if spec.model.encoder.weights:
        pretrained = spec.model.encoder.load(experiment.description.preprocessing.size)
        for collection, tree in pretrained.variables.items():
            if tree:
                variables[collection]["image_encoder"]["backbone"] = jax.tree.map(jnp.asarray, tree)
        logging.info("image encoder: weights from %s", pretrained.source)
    if experiment.description.has_text_encoder and spec.model.text_encoder.weights:
        from caption_jax.pretrained.roberta_weights import load_roberta  # imports transformers, which takes seconds

        text = load_roberta(spec.model.text_encoder.weights)
        variables["params"]["text_encoder"]["roberta"] = jax.tree.map(jnp.asarray, text.params)
        logging.info("text encoder: weights from %s", text.source)
    if spec.model.decoder.weights:
        from caption_jax.pretrained.roberta_decoder import start_from_roberta

        rows = vocabulary.to_full(range(vocabulary.size))
        decoder = start_from_roberta(variables["params"]["decoder"], spec.model.decoder.weights, rows)
        variables["params"]["decoder"] = decoder
    if spec.init_from:
        variables = transfer_weights(variables, spec.init_from, vocabulary)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    logging.info("model: %.2f million parameters, vocabulary of %d tokens", count / 1e6, vocabulary.size)
    return variables


def init_variables(description: RunDescription) -> PyTree:
    """Random variables of the described model: `params` and `batch_stats` (maybe none), float32."""
    init, *arguments = _init_call(description)
    return {"batch_stats": {}, **init(*arguments)}


def _init_call(description: RunDescription) -> tuple:
    """The model's initialisation, jitted, and its arguments."""
    size = description.preprocessing.size
    images = jnp.zeros((1, size, size, 3), jnp.float32)
    tokens = jnp.zeros((1, 1, description.model_settings.max_length - 1), jnp.int32)
    return _initialiser(description), jax.random.key(description.spec.seed), images, tokens


def _initialiser(description: RunDescription) -> Callable:
    """The same function each time, so that its shapes and its values are had from one tracing."""
    if id(description) not in _INITIALISERS:
        # Runs once, over small arrays: compiling it quickly matters more than running it fast.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        init = jax.jit(functools.partial(description.model().init, train=False), compiler_options=options)
        _INITIALISERS[id(description)] = init
        weakref.finalize(description, _INITIALISERS.pop, id(description))
    return _INITIALISERS[id(description)]


def _describe(spec: RunSpec, train: Split) -> RunDescription:
    settings = _backbone_settings(spec)
    data = spec.data
    vocabulary = build_vocabulary(data, train.captions)
    shared_space, context = spec.objective.contrastive_weight > 0, spec.model.context.slots > 0
    text_encoder = text_encoder_sizes(spec, vocabulary) if shared_space or context else None
    if spec.model.decoder.weights:
        _check_decoder_weights(spec, vocabulary)
    model_settings = ModelSettings(
        vocabulary.size, data.max_length, stored_settings(settings), text_encoder, shared_space
    )
    mean, std = tuple(map(float, settings.mean)), tuple(map(float, settings.std))
    preprocessing = Preprocessing(data.image_size, data.fit, data.interpolation, mean, std)
    return RunDescription(spec, model_settings, preprocessing, vocabulary)


def text_encoder_sizes(spec: RunSpec, vocabulary: Vocabulary) -> dict[str, Any]:
    """Sizes of the text encoder that the config names, checked against the words that it will read.

    Raises:
        ValueError: a RoBERTa of another tokenizer, or one too short for the captions.
        FileNotFoundError: there is no such RoBERTa.
    """
    name, data = spec.model.text_encoder.weights, spec.data
    if not name:
        return roberta_sizes(spec.model.text_encoder, vocabulary.size, data.max_length, PAD)
    from caption_jax.pretrained.roberta_weights import load_roberta_sizes

    sizes = load_roberta_sizes(name)
    _check_tokenizer("config.model.text_encoder.weights", name, sizes, spec, vocabulary)
    longest = sizes["max_position_embeddings"] - sizes["pad_token_id"] - 1
    if data.max_length > longest:
        raise ConfigError(
            f"config.data.max_length={data.max_length}, but config.model.text_encoder.weights={name} has positions for "
            f"{longest} tokens"
        )
    return sizes


def _check_decoder_weights(spec: RunSpec, vocabulary: Vocabulary) -> None:
    from caption_jax.pretrained.roberta_decoder import check_shape
    from caption_jax.pretrained.roberta_weights import load_roberta_sizes

    name = spec.model.decoder.weights
    sizes = load_roberta_sizes(name)
    check_shape(sizes, spec.model.decoder, spec.data.max_length)
    _check_tokenizer("config.model.decoder.weights", name, sizes, spec, vocabulary)


def _check_tokenizer(key: str, name: str, sizes: dict[str, Any], spec: RunSpec, vocabulary: Vocabulary) -> None:
    """Raises ValueError unless the captions are in the tokens that a RoBERTa was trained on."""
    rows, pad, tokenizer = sizes["vocab_size"], sizes["pad_token_id"], spec.data.tokenizer
    if tokenizer == "train" or (rows, pad) != (vocabulary.tokenizer.size, PAD):
        raise ConfigError(
            f"{key}={name} was trained on {rows} tokens with pad {pad}, but config.data.tokenizer={tokenizer} has "
            f"{vocabulary.tokenizer.size} with pad {PAD}: name the checkpoint's own tokenizer in "
            "config.data.tokenizer, a folder with its vocab.json and merges.txt or its hub name, or start from nothing "
            f'with {key}=""'
        )


def _backbone_settings(spec: RunSpec) -> Settings:
    """Settings of the weights that the image backbone starts from."""
    encoder = spec.model.encoder
    if spec.init_from:
        source = workdir_files.read_description(spec.init_from)
        if encoder.fits(source.spec.model.encoder):  # then its weights are taken, whatever others exist
            return dataclasses.replace(source.backbone_settings, source=spec.init_from)
    return encoder.settings()


def _resume(spec: RunSpec, workdir: epath.Path) -> RunDescription:
    stored = workdir_files.read_description(workdir)
    changes = differences(stored.spec, spec)
    for key, (old, new) in changes.items():
        logging.warning("config.%s changed since this run was started: %r -> %r", key, old, new)
    workdir_files.check_resumable(changes, workdir)
    return RunDescription(spec, stored.model_settings, stored.preprocessing, stored.vocabulary)


def _check_batches(mesh: jax.sharding.Mesh, sizes: dict[str, int], slices: int = 1) -> None:
    devices = mesh.shape["data"]
    for key, size in sizes.items():
        if size % (devices * slices):
            raise ConfigError(
                f"config.{key}={size} must be a multiple of {devices * slices} ({devices} devices"
                + (f" x {slices} accumulated slices" if slices > 1 else "")
                + f"): set it to {max(size // (devices * slices), 1) * devices * slices}"
            )

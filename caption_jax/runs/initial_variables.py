"""Initial variables for training, from random values, pretrained weights and the weights of `config.init_from`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from caption_jax.runs.description import RunDescription
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.transfer import transfer_weights

PyTree = Any


def variable_shapes(description: RunDescription) -> PyTree:
    """Returns the shapes and dtypes of the model variables, without allocating them."""
    return {"batch_stats": {}, **jax.eval_shape(*_init_call(description))}


def initial_variables(experiment: Experiment) -> PyTree:
    """Initialises variables from the seed, then loads pretrained weights, then the weights of `config.init_from`."""
    spec, vocabulary = experiment.spec, experiment.description.vocabulary
    variables = init_variables(experiment.description)
    if spec.model.encoder.weights:
        pretrained = spec.model.encoder.load(experiment.description.preprocessing.size)
        for collection, tree in pretrained.variables.items():
            if tree:
                variables[collection]["image_encoder"]["backbone"] = jax.tree.map(jnp.asarray, tree)
        logging.info("image encoder: weights from %s", pretrained.source)
    if experiment.description.has_text_encoder and spec.model.text_encoder.weights:
        from caption_jax.pretrained.roberta_weights import load_roberta

        roberta = load_roberta(spec.model.text_encoder.weights)
        variables["params"]["text_encoder"]["roberta"] = jax.tree.map(jnp.asarray, roberta.params)
        logging.info("text encoder: weights from %s", roberta.source)
    if spec.model.decoder.weights:
        from caption_jax.pretrained.roberta_decoder import initialise_from_roberta

        full_ids = vocabulary.to_full(range(vocabulary.size))
        decoder = initialise_from_roberta(variables["params"]["decoder"], spec.model.decoder.weights, full_ids)
        variables["params"]["decoder"] = decoder
    if spec.init_from:
        variables = transfer_weights(variables, spec.init_from, vocabulary)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    logging.info("model: %.2f million parameters, vocabulary of %d tokens", count / 1e6, vocabulary.size)
    return variables


def init_variables(description: RunDescription) -> PyTree:
    """Initialises float32 `params` and `batch_stats` (possibly empty) from the seed."""
    init, *arguments = _init_call(description)
    return {"batch_stats": {}, **init(*arguments)}


def _init_call(description: RunDescription) -> tuple:
    """Returns the jitted `init` of the model, followed by its arguments."""
    size = description.preprocessing.size
    images = jnp.zeros((1, size, size, 3), jnp.float32)
    tokens = jnp.zeros((1, 1, description.model_settings.max_length - 1), jnp.int32)
    return description.jitted_init, jax.random.key(description.spec.seed), images, tokens

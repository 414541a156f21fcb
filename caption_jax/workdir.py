"""The plain files of a run's workdir: what was asked for, with which versions, and what inference must know.

docs/workdir.md lists every file. Paths may be local or on a bucket (`gs://...`).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from caption_jax.config import default_config
from input_pipeline.images import Preprocessing
from input_pipeline.tokenizer import Vocabulary

if TYPE_CHECKING:
    from caption_jax.models.captioning import ImageCaptioningModel

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "tokenizers"),
    *("pillow", "simplejpeg", "kornia-rs"),
)

# A run cannot go on under another value of these: its parameters, its token ids or its data order would not fit.
_FIXED = (
    "seed",
    "model.",
    "data.source",
    "data.tokenizer",
    "data.vocabulary_size",
    "data.lowercase",
    "data.compact_vocabulary",
    "data.max_length",
    "data.image_size",
    "data.fit",
    "data.interpolation",
    "data.batch_size",
    "data.captions_per_image",
    "optimizer.name",
)
_DECIDES_ON_SHARED_SPACE = "objective.contrastive_weight"  # by being 0 or above: the same


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What the model's shape depends on beside the config: sizes found in the data, settings found with the weights.

    `text_encoder` holds the sizes of its RoBERTa, None where the model has no text encoder; `shared_space` says whether
    that comes with a space for images and texts.
    """

    vocabulary_size: int
    max_length: int
    padding: str
    norm_epsilon: float
    text_encoder: dict[str, Any] | None = None
    shared_space: bool = True


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """A workdir read back: enough to rebuild the model, its pixels and its words."""

    config: ConfigDict
    model_settings: ModelSettings
    preprocessing: Preprocessing
    vocabulary: Vocabulary

    def model(self, frozen_norms: frozenset[str] = frozenset()) -> ImageCaptioningModel:
        """Builds the model; batch norms named in `frozen_norms` run on their stored statistics in training too."""
        from caption_jax.models.build import build_model  # Flax: not needed by a start that traces nothing

        return build_model(
            self.config.model,
            vocabulary_size=self.model_settings.vocabulary_size,
            max_length=self.model_settings.max_length,
            dtype=compute_dtype(self.config.dtype),
            frozen_norms=frozen_norms,
            padding=self.model_settings.padding,
            norm_epsilon=self.model_settings.norm_epsilon,
            text_encoder=self.model_settings.text_encoder,
            shared_space=self.model_settings.shared_space,
        )

    def about(self) -> dict[str, Any]:
        """All that decides what the model computes, beside its weights, for the key of a `KeptProgram`."""
        return {
            "model": self.config.model.to_dict(),
            "dtype": self.config.dtype,
            "settings": dataclasses.asdict(self.model_settings),
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "vocabulary": self.vocabulary.fingerprint(),
        }

    @property
    def has_text_encoder(self) -> bool:
        """Whether the model has a text encoder, for a space of images and texts, for context or for both."""
        return self.model_settings.text_encoder is not None

    @property
    def has_shared_space(self) -> bool:
        """Whether the model puts texts in one space with images."""
        return self.has_text_encoder and self.model_settings.shared_space

    def check_shared_space(self) -> None:
        """Raises ValueError, with what to train, where the model has no space that images and texts share."""
        if not self.has_shared_space:
            raise ValueError(
                "this run was trained without a space that its images and texts share: train one with "
                "--config.objective.contrastive_weight above 0, as configs/flickr8k_search.py does"
            )

    @property
    def text_reader(self) -> TextReader:
        """Gives texts and captions in the ids that the model's text encoder reads.

        Raises:
            ValueError: the model has no text encoder.
        """
        if not self.has_text_encoder:
            raise ValueError(
                "this run was trained without a text encoder: train one with --config.objective.contrastive_weight or "
                "--config.model.context.slots above 0"
            )
        rows = self.model_settings.text_encoder["vocab_size"]
        return TextReader(self.vocabulary, rows != self.vocabulary.size, self.model_settings.max_length)

    @property
    def text_ids(self) -> Callable[[jax.Array], jax.Array] | None:
        """From the decoder's token ids to the text encoder's, for `decode`; None without a text encoder."""
        return self.text_reader.ids_of if self.has_text_encoder else None


@dataclasses.dataclass(frozen=True)
class TextReader:
    """From words to the ids of a text encoder.

    An encoder that was trained here from nothing has a row for each token of the compact vocabulary, and reads compact
    ids. A RoBERTa that was trained elsewhere has one for each token of its tokenizer and reads full ids, so that it
    knows words which the training captions lack. (Where the vocabulary is the whole tokenizer both are the same.)

    Attributes:
        vocabulary: of the run.
        full: whether the encoder reads full ids.
        max_length: tokens of the longest text; longer ones are cut as captions are.
    """

    vocabulary: Vocabulary
    full: bool
    max_length: int

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Ids of texts from <s> to </s>, then pads."""
        vocabulary = self.vocabulary
        encode = vocabulary.encode_full_batch if self.full else vocabulary.encode_batch
        return encode(list(texts), self.max_length)

    def ids_of(self, tokens: Int[jax.Array, "*shape"]) -> Int[jax.Array, "*shape"]:
        """Ids of captions that are compact ids already, on the device."""
        if not self.full:
            return tokens
        return jnp.asarray(self.vocabulary.to_full(range(self.vocabulary.size)))[tokens]


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that layers compute in; parameters, norms' statistics, softmax and loss stay float32."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f'config.dtype is {name!r}; it must be "auto", "bfloat16" or "float32"')
    return jnp.dtype(name)


def write_description(workdir: epath.Path, description: RunDescription) -> None:
    """Writes config.json, versions.json, model.json, preprocessing.json and tokenizer/."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(workdir, description.config)
    _write_json(workdir / "model.json", dataclasses.asdict(description.model_settings))
    _write_text(workdir / "preprocessing.json", description.preprocessing.to_json())
    description.vocabulary.save(workdir / "tokenizer")


def write_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Writes config.json, and versions.json of what it now runs with."""
    _write_json(workdir / "config.json", config.to_dict())
    _write_json(workdir / "versions.json", versions())


def read_description(workdir: str | epath.Path) -> RunDescription:
    """Reads what `write_description` wrote.

    Raises:
        FileNotFoundError: the folder is not a run's workdir.
    """
    workdir = epath.Path(workdir)
    return RunDescription(
        config=read_config(workdir),
        model_settings=ModelSettings(**_read_json(workdir / "model.json")),
        preprocessing=Preprocessing.from_json(_read_text(workdir / "preprocessing.json")),
        vocabulary=Vocabulary.load(workdir / "tokenizer"),
    )


def read_config(workdir: str | epath.Path) -> ConfigDict:
    """The config a run was started with, locked; keys that were added since have their defaults."""
    config = default_config()
    with config.unlocked():
        config.update(_tuples(_read_json(epath.Path(workdir) / "config.json")))
    return config


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as "a.b.c" -> (old, new); a key that one side lacks counts as None there."""
    old_flat, new_flat = _flatten(old.to_dict()), _flatten(new.to_dict())
    keys = sorted(old_flat.keys() | new_flat.keys())
    return {k: (old_flat.get(k), new_flat.get(k)) for k in keys if old_flat.get(k) != new_flat.get(k)}


def check_resumable(changes: dict[str, tuple[Any, Any]], workdir: str | epath.Path) -> None:
    """Raises ValueError when a changed key makes the stored state of `workdir` useless."""
    fixed = {k: v for k, v in changes.items() if any(k == f or (f.endswith(".") and k.startswith(f)) for f in _FIXED)}
    fixed |= {k: v for k, v in changes.items() if k == _DECIDES_ON_SHARED_SPACE and not all(v)}
    if fixed:
        lines = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in fixed.items())
        raise ValueError(
            f"{workdir} holds a run that cannot go on with these changes:\n{lines}\n"
            f"Undo them, or train in another workdir with --config.init_from={workdir} to start from its weights."
        )


def _tuples(tree: Any) -> Any:
    """JSON's lists as the tuples they were; the command line can override no list."""
    if isinstance(tree, dict):
        return {key: _tuples(value) for key, value in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: json.loads(json.dumps(tree))}  # tuples and lists compare as equals
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def versions() -> dict[str, str]:
    """Those of Python, the platform and the packages that matter."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _write_json(path: epath.Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False))


def _write_text(path: epath.Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n")
    part.replace(path)  # whole or not at all, whenever the run is killed


def _read_json(path: epath.Path) -> Any:
    return json.loads(_read_text(path))


def _read_text(path: epath.Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not the workdir of a training run")
    return path.read_text()

"""Exports a trained model in one of several formats."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from etils import epath

from caption_jax.errors import ConfigError
from caption_jax.export.card_facts import RunFacts, read_facts
from caption_jax.export.model_card import write_card
from caption_jax.export.onnx_folder import write_onnx_folder
from caption_jax.export.stablehlo_folder import write_stablehlo_folder
from caption_jax.export.torch_folder import write_torch_folder
from caption_jax.inference.consensus_setup import FILE_NAME as FREQUENCIES
from caption_jax.inference.consensus_setup import read_frequencies
from caption_jax.parameters.stored_dtypes import FLOAT32, STORED, find_stored_dtype
from caption_jax.runs.exported_folder import write_exported_folder
from caption_jax.runs.loading import Model, read_model
from caption_jax.specs import DecodeSpec, RunSpec
from input_pipeline.files import absolute_path, check_absent, new_folder

Writer = Callable[[epath.Path, Model, RunFacts, epath.Path], None]  # (new folder, model, facts, workdir)

_USAGE = """\
```python
import caption_jax

captioner = caption_jax.load("FOLDER")  # with the path of this folder
print(captioner.caption("photo.jpg").text)
```

or `caption-jax caption --workdir=FOLDER photo.jpg`. The captions are those of the workdir{weights}, bit for bit, on the
same device with the same versions of the libraries, which `config.json` lists."""


def export_model(
    workdir: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str] = "",
    which: str | int = "best",
    spec: RunSpec | None = None,
    weights: str = STORED,
) -> epath.Path:
    """Exports a model to a new folder, which appears only when it is complete.

    Args:
        workdir: workdir of a run, or a folder that contains a single model.
        to: a key of `WRITERS`.
        out: the new folder; `export/<to>` in the workdir by default.
        which: "best", "last" or a step; see `read_model`.
        spec: a spec whose decoding settings and limits replace those of the run.
        weights: dtype of the large arrays in the file, for `folder`: "stored" for that of the model, "float32",
            "bfloat16" or "int8".

    Returns:
        The new folder.

    Raises:
        ConfigError: the folder already exists, or the format does not support the model or its decoding settings.
        UserError: the model cannot be read.
    """
    workdir = absolute_path(workdir)
    target = absolute_path(out) if out else workdir / "export" / to
    check_absent(target)
    if to != "folder" and weights not in (STORED, FLOAT32):
        raise ConfigError(f"--weights={weights} requires --to=folder: the weights of --to={to} are float32")
    model = read_model(workdir, which, weights if to == "folder" else FLOAT32)
    if spec is not None:
        model = _with_settings(model, spec)
    model.description.spec.decode.check_no_ensemble("export")
    facts = read_facts(workdir, model)
    with new_folder(target) as folder:
        WRITERS[to](folder, model, facts, workdir)
    return target


def _with_settings(model: Model, spec: RunSpec) -> Model:
    """Returns a model with the decoding settings and limits of a spec."""
    description = model.description
    new_spec = dataclasses.replace(description.spec, decode=spec.decode, limits=spec.limits)
    return dataclasses.replace(model, description=dataclasses.replace(description, spec=new_spec))


def write_folder(folder: epath.Path, model: Model, facts: RunFacts, workdir: epath.Path) -> None:
    """Writes the format that `caption_jax.load` reads."""
    dtype = find_stored_dtype(model.weights.variables)
    usage = _USAGE.format(weights="" if dtype == FLOAT32 else f" with `--weights={dtype}`")
    card = write_card(model, facts, usage, "caption-jax")
    extra_files = _read_frequencies(workdir, model.description.spec.decode)
    write_exported_folder(folder, model.description, model.weights, card, extra_files)


def _read_frequencies(workdir: epath.Path, spec: DecodeSpec) -> dict[str, bytes]:
    """Returns the document frequencies that captioning needs, as a file, or nothing if it does not need them."""
    if not spec.consensus_weight or spec.consensus_metric != "CIDEr-D":
        return {}
    read_frequencies(workdir / FREQUENCIES)  # reports a missing or damaged file
    return {FREQUENCIES: (workdir / FREQUENCIES).read_bytes()}


WRITERS: Mapping[str, Writer] = MappingProxyType(
    {
        "folder": write_folder,
        "torch": write_torch_folder,
        "stablehlo": write_stablehlo_folder,
        "onnx": write_onnx_folder,
    }
)

"""Locates the weights of a network in the checkpoints of PyTorch training programs.

A checkpoint nests the state dict next to optimizer states and other objects, and wrappers of the network add prefixes
to its keys:

| written by | entry of the file | keys |
| --- | --- | --- |
| `torch.save(model.state_dict(), ...)` | the file itself | `conv_stem.weight` |
| Lightning | `state_dict` | `model.conv_stem.weight`, and the keys of losses and metrics |
| timm's training script | `state_dict`, `state_dict_ema` | `conv_stem.weight` |
| torchvision's training script | `model`, `model_ema` | `module.features.0.0.weight`, `n_averaged` |
| `DataParallel`, `DistributedDataParallel` | any | `module.conv_stem.weight` |
| `torch.compile` | any | `_orig_mod.conv_stem.weight` |
| fully sharded data parallelism | any | `_fsdp_wrapped_module.conv_stem.weight` |

Averaged weights (EMA) are preferred to those of the last step, as in timm.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caption_jax.errors import WeightsError
from caption_jax.pretrained.torch_file import LazyTensor, UnknownObject

log = logging.getLogger(__name__)

# Keys that do not affect the features: classification heads, of any number of classes, and counters.
UNUSED_KEYS = re.compile(r"(classifier|_?fc|heads?)\..*|(.*\.)?num_batches_tracked|n_averaged")

# Entries that contain a state dict, in order of preference: averaged weights first.
_ENTRIES = (
    "state_dict_ema",
    "model_ema",
    "model_ema_state_dict",
    "ema_state_dict",
    "ema_model",
    "ema_model_state_dict",
    "params_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
_MAX_DEPTH = 3  # of nested entries, such as `model.state_dict`

# Segments that wrappers insert between module names, at any depth.
_WRAPPER_SEGMENT = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?)([._]|$)")


def find_state_dict(path: Path, content: Any) -> tuple[str, dict[str, LazyTensor]]:
    """Returns the state dict of a PyTorch file and the entry that contains it ("" for the file itself).

    Args:
        path: the file, for messages.
        content: output of `read_torch_file`.

    Raises:
        WeightsError: there is no state dict, or it contains anything other than tensors.
    """
    if isinstance(content, UnknownObject):
        raise WeightsError(
            f"{path} contains an object of the class {content.origin} instead of its weights; the class is not loaded, "
            "because that could execute code. Save its state dict: torch.save(model.state_dict(), path)"
        )
    for entry, nested in _list_entries(content):
        if all(isinstance(value, LazyTensor) for value in nested.values()):
            return entry, {str(key): value for key, value in nested.items()}
    raise WeightsError(f"{path}: expected a dictionary of tensors, but {_describe(content)}")


def _list_entries(
    content: Any, entry: str = "", depth: int = 0, visited: set[int] | None = None
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yields (entry, dictionary) pairs in order of preference, without the extra state of modules.

    A dictionary that is reached in several ways, perhaps from itself, is yielded once.
    """
    visited = set() if visited is None else visited
    if not isinstance(content, Mapping) or id(content) in visited:
        return
    visited.add(id(content))
    values = {key: value for key, value in content.items() if not str(key).endswith("_extra_state")}
    if any(isinstance(value, LazyTensor) for value in values.values()):
        yield entry, values
    for name in _ENTRIES if depth < _MAX_DEPTH else ():
        yield from _list_entries(content.get(name), f"{entry}.{name}".removeprefix("."), depth + 1, visited)


def _describe(content: Any) -> str:
    """Describes the content of a file without a state dict, with the remedy."""
    remedy = 'save the weights alone: torch.save(model.state_dict(), "weights.pth")'
    if not isinstance(content, Mapping):
        return f"the file contains a {type(content).__name__}; {remedy}"
    for name, value in _list_other_values(content):
        if isinstance(value, UnknownObject):
            return (
                f"refusing to load the Python object {value.origin} at {name!r}, which could execute code and is not "
                f"needed for weights; {remedy}"
            )
        return f"{name!r} is a {type(value).__name__}, not a tensor; {remedy}"
    keys = ", ".join(repr(str(key)) for key in list(content)[:10])
    return f"no entry of the file is one (keys: {keys or 'none'}; expected one of {', '.join(_ENTRIES)}); {remedy}"


def _list_other_values(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the names and values of a file that are in place of tensors or of a state dict."""
    for entry, nested in _list_entries(content):
        for key, value in nested.items():
            if not isinstance(value, LazyTensor):
                yield f"{entry}.{key}".removeprefix("."), value
    has_only_objects = all(isinstance(value, UnknownObject) for value in content.values())
    for key, value in content.items():
        if isinstance(value, UnknownObject) and (has_only_objects or key in _ENTRIES):
            yield str(key), value


def read_timm_config(content: Any) -> dict[str, Any]:
    """Returns the settings in a checkpoint of timm's training script, in the form of timm's config.json.

    Returns:
        `architecture`, the name of the timm model, and `pretrained_cfg` with `mean` and `std` of pixels in 0..1 if they
        were set on the command line; {} for other checkpoints.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("arch"), str):
        return {}
    config: dict[str, Any] = {"architecture": content["arch"]}
    arguments = content.get("args")
    settings = arguments.attributes if isinstance(arguments, UnknownObject) else arguments
    if isinstance(settings, Mapping):
        pixels = {key: settings[key] for key in ("mean", "std") if _is_triple(settings.get(key))}
        config["pretrained_cfg"] = pixels
    return config


def _is_triple(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)


@dataclass(frozen=True)
class SelectedNetwork:
    """The tensors of one network in a weight file.

    Attributes:
        stem: key of the first layer, without the prefix.
        prefix: prefix of the keys in the file.
        tensors: tensors of the network, without the prefix.
        others: tensors of other parts of the file, such as losses and another head.
    """

    stem: str
    prefix: str
    tensors: dict[str, Any]
    others: dict[str, Any]

    def find(self, key: str, inner_prefix: str) -> Any | None:
        """Returns the tensor `key` of the network, or of the module that contains it as `inner_prefix`, or None."""
        outside = self.others.get(self.prefix.removesuffix(inner_prefix) + key)
        return self.tensors.get(key, outside)


def select_network(path: Path, tensors: Mapping[str, Any], stems: Sequence[str]) -> SelectedNetwork | None:
    """Selects the tensors of one network by the prefix of its first layer, and logs how many others are ignored.

    Args:
        path: the file, for messages.
        tensors: all tensors of the file.
        stems: possible keys of the first layer, without prefix, such as "conv_stem.weight".

    Returns:
        The network; None if the file contains none of the stems.

    Raises:
        WeightsError: several networks match, and not exactly one of them has averaged weights.
    """
    tensors = {_WRAPPER_SEGMENT.sub("", key).removeprefix("."): tensor for key, tensor in tensors.items()}
    for stem in stems:
        prefixes = [key.removesuffix(stem) for key in tensors if key == stem or key.endswith(f".{stem}")]
        if not prefixes:
            continue
        prefix = _choose_prefix(path, prefixes)
        others = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
        if others:
            log.info("%s: reading the keys with the prefix %r; %d others are ignored", path, prefix, len(others))
        selected = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
        return SelectedNetwork(stem, prefix, selected, others)
    return None


def _choose_prefix(path: Path, prefixes: Collection[str]) -> str:
    averaged = [prefix for prefix in prefixes if _AVERAGED.search(prefix)]
    for choices in (averaged, prefixes):
        if len(choices) == 1:
            return next(iter(choices))
    raise WeightsError(
        f"{path} contains several networks, with the prefixes {', '.join(map(repr, prefixes))}; save one of them: "
        'torch.save({k.removeprefix(p): v for k, v in state_dict.items() if k.startswith(p)}, "weights.pth")'
    )

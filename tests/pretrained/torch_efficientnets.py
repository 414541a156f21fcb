"""EfficientNets of PyTorch libraries with seeded weights. As a script, it writes the golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from seeded_weights import seeded_images, seeded_weights, thinned

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "efficientnet"

# Name of the golden file: (library, model name in the library, our variant, image size).
FROZEN = {
    "torchvision_b0": ("torchvision", "efficientnet_b0", "b0", 64),
    "transformers_b0": ("transformers", "b0", "b0", 64),
    "timm_efficientnet_b0": ("timm", "efficientnet_b0", "b0", 64),
    "timm_tf_efficientnet_b3": ("timm", "tf_efficientnet_b3", "b3", 75),
    "timm_tf_efficientnet_lite0": ("timm", "tf_efficientnet_lite0", "lite0", 64),
}


def build(library: str, name: str) -> Any:
    """Returns the PyTorch module in evaluation mode, with its default random weights."""
    if library == "torchvision":
        import torchvision

        return getattr(torchvision.models, name)().eval()
    if library == "timm":
        import timm

        return timm.create_model(name).eval()
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    assert name == "b0"
    sizes = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280}
    return EfficientNetForImageClassification(EfficientNetConfig(depthwise_padding=[], **sizes)).eval()


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the module's state."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def load_seeded(module: Any) -> dict[str, np.ndarray]:
    """Loads seeded weights into the module and returns them."""
    import torch

    weights = seeded_weights(shapes_of(module))
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return weights


def features_of(library: str, module: Any, images: np.ndarray) -> np.ndarray:
    """Returns the last feature map, [batch, h, w, channels]."""
    import torch

    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if library == "torchvision":
            features = module.features(pixels)
        elif library == "timm":
            features = module.forward_features(pixels)
        else:
            features = module.efficientnet(pixels).last_hidden_state
    return features.numpy().transpose(0, 2, 3, 1)


def freeze() -> None:
    """Writes all golden files: names and shapes of the state, and a subset of the features."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for file, (library, name, _, size) in FROZEN.items():
        module = build(library, name)
        load_seeded(module)
        features = thinned(features_of(library, module, seeded_images(size)))
        np.savez_compressed(GOLDEN / f"{file}.npz", features=features, shapes=json.dumps(shapes_of(module)))


if __name__ == "__main__":
    freeze()

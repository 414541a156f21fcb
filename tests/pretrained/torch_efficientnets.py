"""Reference EfficientNets from PyTorch libraries, with seeded weights. Run as a script to write the golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from seeded_weights import get_shapes, load_seeded_weights, seeded_images, subsample

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "efficientnet"

# Golden file -> (library, model name in the library, our variant, image size).
GOLDEN_MODELS = {
    "torchvision_b0": ("torchvision", "efficientnet_b0", "b0", 64),
    "transformers_b0": ("transformers", "b0", "b0", 64),
    "timm_efficientnet_b0": ("timm", "efficientnet_b0", "b0", 64),
    "timm_tf_efficientnet_b3": ("timm", "tf_efficientnet_b3", "b3", 75),
    "timm_tf_efficientnet_lite0": ("timm", "tf_efficientnet_lite0", "lite0", 64),
}


def build_module(library: str, name: str) -> Any:
    """Returns the PyTorch module in evaluation mode, with its default random weights."""
    if library == "torchvision":
        import torchvision

        return getattr(torchvision.models, name)().eval()
    if library == "timm":
        import timm

        return timm.create_model(name).eval()
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    assert name == "b0"
    settings = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280}
    return EfficientNetForImageClassification(EfficientNetConfig(depthwise_padding=[], **settings)).eval()


def compute_features(library: str, module: Any, images: np.ndarray) -> np.ndarray:
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


def write_golden_files() -> None:
    """Writes a file per model with the shapes of its state dict and a subset of its features."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for file, (library, name, _, size) in GOLDEN_MODELS.items():
        module = build_module(library, name)
        load_seeded_weights(module)
        features = subsample(compute_features(library, module, seeded_images(size)))
        np.savez_compressed(GOLDEN / f"{file}.npz", features=features, shapes=json.dumps(get_shapes(module)))


if __name__ == "__main__":
    write_golden_files()

"""ViTs of PyTorch libraries with seeded weights. As a script, it writes the golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from seeded_weights import seeded_images, seeded_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vit"

# Image size of the weights, and other image sizes that they are tested with.
MICRO_SIDE, OTHER_SIDES = 32, (24, 48)

# Sizes as (width, blocks, heads, patch size, image size).
SIZES = {"micro": (32, 2, 2, 8, MICRO_SIDE), "s16": (384, 12, 6, 16, 224), "b16": (768, 12, 12, 16, 224)}

LIBRARIES = ("timm", "timm_siglip", "transformers_vit", "transformers_siglip")


def build(library: str, size: str) -> Any:
    """Returns the PyTorch module in evaluation mode, with its default random weights."""
    width, blocks, heads, patch, side = SIZES[size]
    if library.startswith("timm"):
        from timm.models.vision_transformer import VisionTransformer

        siglip = {"class_token": False, "global_pool": "map"} if library == "timm_siglip" else {}
        return VisionTransformer(side, patch, embed_dim=width, depth=blocks, num_heads=heads, **siglip).eval()
    import transformers

    sizes = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "image_size": side,
    }
    if library == "transformers_vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).eval()
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes)).eval()


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
    """Returns the normalised patch tokens, [batch, h, w, width]."""
    import torch

    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if library.startswith("timm"):
            tokens = module.forward_features(pixels)
        elif library == "transformers_vit":
            tokens = module.vit(pixels).last_hidden_state
        else:
            tokens = module(pixels).last_hidden_state
    patches = tokens.numpy() if library.endswith("siglip") else tokens.numpy()[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.reshape(len(images), side, side, -1)


def resized_features_of(library: str, side: int) -> np.ndarray:
    """Returns timm's features at another image size, with resized position embeddings."""
    module = build(library, "micro")
    load_seeded(module)
    module.set_input_size(side)
    return features_of(library, module, seeded_images(side))


def freeze() -> None:
    """Writes a golden file per library: names and shapes of the state, features, and timm's at other image sizes."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        module = build(library, "micro")
        load_seeded(module)
        stored = {"features": features_of(library, module, seeded_images(MICRO_SIDE))}
        shapes = json.dumps(shapes_of(module))
        if library.startswith("timm"):
            for side in OTHER_SIDES:
                stored[f"side_{side}"] = resized_features_of(library, side)
        np.savez_compressed(GOLDEN / f"{library}.npz", shapes=shapes, **stored)


if __name__ == "__main__":
    freeze()

"""Reference ViTs from PyTorch libraries, with seeded weights. Run as a script to write the golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from seeded_weights import get_shapes, load_seeded_weights, seeded_images

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vit"

# The image size of the weights, and other image sizes for tests with resized position embeddings.
MICRO_SIDE, OTHER_SIDES = 32, (24, 48)

# Size -> (width, blocks, heads, patch size, image size).
SIZES = {"micro": (32, 2, 2, 8, MICRO_SIDE), "s16": (384, 12, 6, 16, 224), "b16": (768, 12, 12, 16, 224)}

LIBRARIES = ("timm", "timm_siglip", "transformers_vit", "transformers_siglip")


def build_module(library: str, size: str) -> Any:
    """Returns the PyTorch module in evaluation mode, with its default random weights."""
    width, blocks, heads, patch, side = SIZES[size]
    if library.startswith("timm"):
        from timm.models.vision_transformer import VisionTransformer

        siglip = {"class_token": False, "global_pool": "map"} if library == "timm_siglip" else {}
        return VisionTransformer(side, patch, embed_dim=width, depth=blocks, num_heads=heads, **siglip).eval()
    import transformers

    settings = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "image_size": side,
    }
    if library == "transformers_vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**settings)).eval()
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**settings)).eval()


def compute_features(library: str, module: Any, images: np.ndarray) -> np.ndarray:
    """Returns the patch tokens after the final norm, [batch, h, w, width]."""
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


def compute_resized_features(library: str, side: int) -> np.ndarray:
    """Returns the features of a timm model at another image size, with resized position embeddings."""
    module = build_module(library, "micro")
    load_seeded_weights(module)
    module.set_input_size(side)
    return compute_features(library, module, seeded_images(side))


def write_golden_files() -> None:
    """Writes a file per library with the shapes of its state dict and its features.

    The files of timm models also contain features at other image sizes.
    """
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        module = build_module(library, "micro")
        load_seeded_weights(module)
        arrays = {"features": compute_features(library, module, seeded_images(MICRO_SIDE))}
        shapes = json.dumps(get_shapes(module))
        if library.startswith("timm"):
            for side in OTHER_SIDES:
                arrays[f"side_{side}"] = compute_resized_features(library, side)
        np.savez_compressed(GOLDEN / f"{library}.npz", shapes=shapes, **arrays)


if __name__ == "__main__":
    write_golden_files()

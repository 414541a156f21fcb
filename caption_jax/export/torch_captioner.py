"""Captions images with PyTorch.

    python captioner.py photo.jpg more/*.png

or, from Python, `Captioner(folder).caption(["photo.jpg"])`. Requires torch, safetensors, NumPy and Pillow. The folder
of this file contains the model: config.json, preprocessing.json, tokenizer.json and model.safetensors, in which the
parameters of `encoder` have the names of timm's EfficientNet.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from caption_jax.export.pixel_source import load_pixels  # replaced by its source in the exported file

BOS, PAD, EOS = 0, 1, 2  # ids of <s>, <pad> and </s>
MEMORY_NORM_EPSILON = 1e-6
ACTIVATIONS = {"swish": functional.silu, "relu6": functional.relu6}
GELU = {"gelu": "none", "gelu_tanh": "tanh"}  # the argument `approximate` of torch

Cache = list[tuple[Tensor, Tensor]]  # keys and values [batch, heads, tokens, depth] of each decoder layer


class Convolution(nn.Conv2d):
    """Convolution without bias, padded as in TensorFlow ("same") or as in PyTorch ("symmetric")."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: str, groups: int = 1):
        self.is_same = padding == "same"
        side = 0 if self.is_same else kernel // 2
        super().__init__(inputs, outputs, kernel, stride, padding=side, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features [batch, outputs, height / stride, width / stride], rounded up if the padding is "same"."""
        if self.is_same:
            sides = [side for size in (x.shape[3], x.shape[2]) for side in self._pad_axis(size)]
            x = functional.pad(x, sides)
        return super().forward(x)

    def _pad_axis(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a weight that depends on the means of all channels (Hu et al., 2018)."""

    def __init__(self, channels: int, hidden: int, activation: str):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.conv_expand = nn.Conv2d(hidden, channels, 1)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` [batch, channels, height, width] with scaled channels."""
        hidden = self.activation(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.conv_expand(hidden))


class Block(nn.Module):
    """Inverted residual block: expand, depthwise, squeeze-excite, project. Its layers have the names of timm."""

    def __init__(self, inputs: int, stage: dict[str, int], stride: int, settings: dict[str, Any]):
        super().__init__()
        hidden, outputs, padding = inputs * stage["expand"], stage["channels"], settings["padding"]
        self.activation = ACTIVATIONS[settings["activation"]]
        self.is_residual = stride == 1 and inputs == outputs
        self.has_expansion = stage["expand"] != 1
        depthwise = Convolution(hidden, hidden, stage["kernel"], stride, padding, groups=hidden)
        project = Convolution(hidden, outputs, 1, 1, padding)
        epsilon = settings["norm_epsilon"]
        if self.has_expansion:
            self.conv_pw, self.bn1 = Convolution(inputs, hidden, 1, 1, padding), nn.BatchNorm2d(hidden, epsilon)
            self.conv_dw, self.bn2 = depthwise, nn.BatchNorm2d(hidden, epsilon)
            self.conv_pwl, self.bn3 = project, nn.BatchNorm2d(outputs, epsilon)
        else:
            self.conv_dw, self.bn1 = depthwise, nn.BatchNorm2d(hidden, epsilon)
            self.conv_pw, self.bn2 = project, nn.BatchNorm2d(outputs, epsilon)
        has_weights = settings["squeeze_excite"]
        self.se = SqueezeExcite(hidden, max(1, inputs // 4), settings["activation"]) if has_weights else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns features [batch, channels, height / stride, width / stride]."""
        residual = x
        if self.has_expansion:
            x = self.activation(self.bn1(self.conv_pw(x)))
            x = self.activation(self.bn2(self.conv_dw(x)))
            x = self.bn3(self.conv_pwl(self.se(x)))
        else:
            x = self.activation(self.bn1(self.conv_dw(x)))
            x = self.bn2(self.conv_pw(self.se(x)))
        return x + residual if self.is_residual else x


class EfficientNet(nn.Module):
    """EfficientNet (Tan and Le, 2019) or EfficientNet-Lite up to its last feature map."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        stem, head, epsilon = settings["stem"], settings["head"], settings["norm_epsilon"]
        self.activation = ACTIVATIONS[settings["activation"]]
        self.conv_stem, self.bn1 = Convolution(3, stem, 3, 2, settings["padding"]), nn.BatchNorm2d(stem, epsilon)
        stages, inputs = [], stem
        for stage in settings["stages"]:
            blocks = []
            for index in range(stage["blocks"]):
                blocks.append(Block(inputs, stage, stage["stride"] if index == 0 else 1, settings))
                inputs = stage["channels"]
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = Convolution(inputs, head, 1, 1, settings["padding"]), nn.BatchNorm2d(head, epsilon)

    def forward(self, images: Tensor) -> Tensor:
        """Returns features [batch, channels, h, w] of normalised images [batch, 3, height, width]."""
        x = self.activation(self.bn1(self.conv_stem(images)))
        return self.activation(self.bn2(self.conv_head(self.blocks(x))))


class GridMemory(nn.Module):
    """One memory position per cell: a linear layer, a position embedding, then layer norm."""

    def __init__(self, cells: int, channels: int, width: int):
        super().__init__()
        self.dense, self.norm = nn.Linear(channels, width), nn.LayerNorm(width, MEMORY_NORM_EPSILON)
        self.position = nn.Parameter(torch.zeros(cells, width))

    def forward(self, cells: Tensor) -> Tensor:
        """Returns the memory [batch, cells, width] of features [batch, cells, channels]."""
        return self.norm(self.dense(cells) + self.position)


class VectorMemory(nn.Module):
    """One memory position per image: the mean of the cells, or all cells, a linear layer, then layer norm."""

    def __init__(self, cells: int, channels: int, width: int, pooling: str):
        super().__init__()
        self.is_mean = pooling == "mean"
        self.dense = nn.Linear(channels if self.is_mean else cells * channels, width)
        self.norm = nn.LayerNorm(width, MEMORY_NORM_EPSILON)

    def forward(self, cells: Tensor) -> Tensor:
        """Returns the memory [batch, 1, width] of features [batch, cells, channels]."""
        pooled = cells.mean(1) if self.is_mean else cells.flatten(1)
        return self.norm(self.dense(pooled))[:, None]


class Memory(nn.Module):
    """The input of cross-attention: the grid, the vector, or both in this order."""

    def __init__(self, settings: dict[str, Any], channels: int, width: int):
        super().__init__()
        cells, kind = settings["cells"], settings["image_memory"]
        self.grid = GridMemory(cells, channels, width) if kind != "vector" else None
        self.vector = VectorMemory(cells, channels, width, settings["vector"]) if kind != "grid" else None

    def forward(self, features: Tensor) -> Tensor:
        """Returns the memory [batch, positions, width] of features [batch, channels, h, w]."""
        cells = features.flatten(2).transpose(1, 2)
        return torch.cat([part(cells) for part in (self.grid, self.vector) if part is not None], 1)


class SelfAttention(nn.Module):
    """Causal attention of each token to itself and to the preceding tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the output [batch, tokens, width], and the keys and values of all tokens so far."""
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        visible = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=x.device)
        visible = visible.tril(keys.shape[2] - queries.shape[2])
        y = functional.scaled_dot_product_attention(queries, keys, values, visible)
        return self.out(y.transpose(1, 2).flatten(2)), (keys, values)


class CrossAttention(nn.Module):
    """Attention of each token to the memory."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.query, self.out = heads, nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values [batch, heads, positions, depth] of the memory."""
        keys, values = self.key_value(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Returns the output [batch, tokens, width]."""
        queries = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.approximate = GELU[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output [batch, tokens, width]."""
        return self.contract(functional.gelu(self.expand(x), approximate=self.approximate))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each with a norm before it ("pre") or after it."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        width, heads, epsilon = settings["width"], settings["heads"], settings["norm_epsilon"]
        self.is_pre = settings["norm"] == "pre"
        self.self_attention, self.cross_attention = SelfAttention(width, heads), CrossAttention(width, heads)
        self.feed_forward = FeedForward(width, settings["feed_forward"], settings["activation"])
        for name in ("self_attention_norm", "cross_attention_norm", "feed_forward_norm"):
            self.add_module(name, nn.LayerNorm(width, epsilon))

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the states [batch, tokens, width], and the keys and values of all tokens so far."""
        y, past = self.self_attention(self._before(self.self_attention_norm, x), past)
        x = self._after(self.self_attention_norm, x + y)
        y = self.cross_attention(self._before(self.cross_attention_norm, x), *memory)
        x = self._after(self.cross_attention_norm, x + y)
        y = self.feed_forward(self._before(self.feed_forward_norm, x))
        return self._after(self.feed_forward_norm, x + y), past

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.is_pre else x

    def _after(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.is_pre else norm(x)


class Decoder(nn.Module):
    """Transformer decoder whose output layer is tied to the token embedding."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        width, epsilon = settings["width"], settings["norm_epsilon"]
        self.embedding = nn.Embedding(settings["vocabulary_size"], width)
        self.output_bias = nn.Parameter(torch.zeros(settings["vocabulary_size"]))
        self.position = nn.Parameter(torch.zeros(settings["max_length"], width))
        self.embedding_norm = nn.LayerNorm(width, epsilon)
        self.layers = nn.ModuleList(DecoderLayer(settings) for _ in range(settings["layers"]))
        self.final_norm = nn.LayerNorm(width, epsilon) if settings["norm"] == "pre" else nn.Identity()

    def project_memory(self, memory: Tensor) -> Cache:
        """Returns the keys and values of the memory for each layer."""
        return [layer.cross_attention.project(memory) for layer in self.layers]

    def forward(self, tokens: Tensor, memory: Cache, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Returns logits [batch, tokens, vocabulary] of the token after each of `tokens`, and the cache with them."""
        start = 0 if cache is None else cache[0][0].shape[2]
        x = self.embedding_norm(self.embedding(tokens) + self.position[start : start + tokens.shape[1]])
        new_cache = []
        for index, layer in enumerate(self.layers):
            x, past = layer(x, memory[index], None if cache is None else cache[index])
            new_cache.append(past)
        return self.final_norm(x) @ self.embedding.weight.T + self.output_bias, new_cache


class CaptioningModel(nn.Module):
    """Image encoder and decoder, built from config.json and preprocessing.json."""

    def __init__(self, config: dict[str, Any], preprocessing: dict[str, Any]):
        super().__init__()
        self.decode_settings = config["decode"]
        self.encoder, self.decoder = EfficientNet(config["encoder"]), Decoder(config["decoder"])
        self.memory = Memory(config["memory"], config["encoder"]["head"], config["decoder"]["width"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocessing[name]).view(3, 1, 1), persistent=False)

    def encode(self, pixels: Tensor) -> Cache:
        """Returns the projected memory of images [batch, height, width, 3] in 0..255."""
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.decoder.project_memory(self.memory(self.encoder(images)))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Returns logits [batch, tokens, vocabulary] of the token after each of `tokens`, which start with <s>."""
        return self.decoder(tokens, self.encode(pixels))[0]

    @torch.inference_mode()
    def decode_greedily(self, pixels: Tensor) -> Tensor:
        """Returns the most likely token of each step [batch, tokens], padded after </s>."""
        settings = self.decode_settings
        memory, cache = self.encode(pixels), None
        tokens = torch.full((len(pixels), 1), BOS, device=pixels.device)
        is_finished = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        for length in range(2, settings["max_length"] + 1):  # with this token and, except at the limit, </s> to come
            logits, cache = self.decoder(tokens[:, -1:], memory, cache)
            logits[:, :, [BOS, PAD]] = -torch.inf
            if length < settings["min_length"]:
                logits[:, :, EOS] = -torch.inf
            if length == settings["max_length"] and settings["at_limit"] == "end":
                logits[:, :, EOS] = torch.inf
            chosen = logits[:, -1].argmax(-1).masked_fill(is_finished, PAD)
            tokens = torch.cat([tokens, chosen[:, None]], 1)
            is_finished |= chosen == EOS
            if is_finished.all():
                break
        return tokens[:, 1:]


class Vocabulary:
    """Text of token ids. The ids of the model are compact; `full_ids` has their ids in tokenizer.json."""

    def __init__(self, tokenizer: dict[str, Any], full_ids: Sequence[int], special_ids: Sequence[int]):
        tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
        self.tokens = ["" if index in special_ids else tokens[index] for index in full_ids]
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # byte-level BPE writes these as they are
        others = [byte for byte in range(256) if byte not in printable]
        characters = [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
        self.bytes = dict(zip(characters, [*printable, *others], strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids up to </s>."""
        text = "".join(self.tokens[index] for index in (ids[: ids.index(EOS)] if EOS in ids else ids))
        return bytes(self.bytes[character] for character in text).decode(errors="replace").strip()


class Captioner:
    """A captioning model with its preprocessing and vocabulary.

    Args:
        folder: the folder with the files of the model.
        device: device of torch, such as "cuda".
    """

    def __init__(self, folder: str | os.PathLike[str] = Path(__file__).parent, device: str = "cpu"):
        folder = Path(folder)
        files = (folder / name for name in ("config.json", "preprocessing.json", "tokenizer.json"))
        config, self.preprocessing, tokenizer = (json.loads(file.read_text("utf-8")) for file in files)
        self.model = CaptioningModel(config, self.preprocessing).eval()
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model.to(device)
        self.vocabulary = Vocabulary(tokenizer, config["full_ids"], config["special_ids"])

    def caption(self, images: Sequence[str | os.PathLike[str] | Image.Image]) -> list[str]:
        """Returns a caption for each image, which is a path or a PIL image. All images are one batch."""
        pixels = np.stack([load_pixels(image, self.preprocessing) for image in images])
        tokens = self.model.decode_greedily(torch.from_numpy(pixels).to(self.model.mean.device))
        return [self.vocabulary.decode(ids) for ids in tokens.tolist()]


def main() -> None:
    """Prints a line per image: its path, a tab and its caption."""
    parser = argparse.ArgumentParser(description="Captions images.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    captioner = Captioner(device=arguments.device)
    for image in arguments.images:
        print(f"{image}\t{captioner.caption([image])[0]}")


if __name__ == "__main__":
    main()

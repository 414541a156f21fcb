"""The captioner of `configs/coco.py` in PyTorch: torchvision's EfficientNet-B0 and `nn.TransformerDecoder`.

    python -m benchmarks.peers.torch_captioner --workload=train_step --batch=16 --compile=1

Runs as a child process of a benchmark, which controls it via standard input; see `benchmarks.alternate.serve`. Images
are in channels_last format, and attention and AdamW are PyTorch's fused implementations. As in our model, there is no
dropout on attention weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from benchmarks.alternate import serve, use_cores
from input_pipeline.special_tokens import PAD


class Captioner(nn.Module):
    """Image encoder, projection of its feature grid, and a pre-norm decoder with tied embeddings."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        hidden: int = 2048,
        cells: int = 49,
    ):
        super().__init__()
        self.backbone = torchvision.models.efficientnet_b0(stochastic_depth_prob=0.0).features
        self.grid = nn.Linear(1280, width)
        self.grid_position = nn.Parameter(torch.randn(cells, width) * 0.02)
        self.grid_norm = nn.LayerNorm(width)
        self.memory_dropout = nn.Dropout(0.1)
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.embedding_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)
        layer = nn.TransformerDecoderLayer(
            width, heads, hidden, 0.1, nn.GELU(approximate="tanh"), batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        for block in self.decoder.layers:
            block.self_attn.dropout = block.multihead_attn.dropout = 0.0
        self.output_bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits [captions, length, vocabulary].

        Args:
            images: Normalised images [batch, 3, height, width].
            tokens: Input tokens [captions, length], the same number of captions for each image.
        """
        grid = self.backbone(images).flatten(2).transpose(1, 2)
        memory = self.memory_dropout(self.grid_norm(self.grid(grid) + self.grid_position))
        memory = memory.repeat_interleave(len(tokens) // len(images), 0)
        length = tokens.shape[1]
        x = self.dropout(self.embedding_norm(self.embedding(tokens) + self.position[:length]))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.decoder(x, memory, tgt_mask=mask, tgt_is_causal=True)
        return F.linear(x, self.embedding.weight, self.output_bias)


def make_train_step(
    model: Captioner,
    images: torch.Tensor,
    tokens: torch.Tensor,
    *,
    compiled: bool,
    mixed_precision: bool = False,
) -> Callable[[], torch.Tensor]:
    """Returns a function that updates all parameters with one batch, and returns the loss.

    Args:
        model: Model in training mode, on the device of the batch.
        images: Uint8 images [batch, height, width, 3].
        tokens: Int64 tokens [captions, length], the same number of captions for each image; padding is not predicted.
        compiled: Whether to compile the loss with `torch.compile`.
        mixed_precision: Whether to compute in bfloat16 where PyTorch's automatic mixed precision does so.
    """
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def compute_loss(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        pixels = ((images.float() - 127.5) / 127.5).permute(0, 3, 1, 2)  # a view, so channels_last
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed_precision):
            logits = model(pixels, tokens[:, :-1])
        targets = tokens[:, 1:].flatten()
        return F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=PAD, label_smoothing=0.1)

    compute_loss = torch.compile(compute_loss) if compiled else compute_loss

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = compute_loss(images, tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def make_forward_pass(
    batch: int,
    image_size: int,
    *,
    compiled: bool,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[], torch.Tensor]:
    """Returns a function that runs the forward pass of the encoder."""
    model = torchvision.models.efficientnet_b0().features.eval()
    model = model.to(device, dtype, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, image_size, image_size, device=device, dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if compiled else model

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return forward(images)

    return run


def main() -> None:
    """Serves the selected workload as a child process of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=["train_step", "encoder"], required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--compile", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the training step")
    options = parser.parse_args()
    use_cores(options.cores)
    torch.set_num_threads(options.cores)
    torch.manual_seed(0)
    if options.workload == "encoder":
        serve(make_forward_pass(options.batch, 224, compiled=bool(options.compile)), untimed_runs=5)
        return
    model = Captioner(options.vocabulary, options.length).train().to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (options.batch, 224, 224, 3), dtype=torch.uint8)
    tokens = torch.randint(3, options.vocabulary, (options.batch, options.length))
    train_step = make_train_step(
        model, images, tokens, compiled=bool(options.compile), mixed_precision=options.dtype == "bfloat16"
    )
    serve(lambda: train_step().item(), untimed_runs=1)


if __name__ == "__main__":
    main()

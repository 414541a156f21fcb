"""The same tasks in PyTorch, as a child process of a cell, on a GPU if there is one.

    python -m benchmarks.accelerator.torch_side --task=train --scale=full --dtype=bfloat16 --compile

Images are in channels_last format; attention and AdamW are PyTorch's fused implementations. "bfloat16" is automatic
mixed precision in training, and bfloat16 weights in the encoder and in decoding. "float32" uses TF32, the default of
XLA on a GPU. Decoding is `generate` of transformers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from benchmarks.accelerator.workload import SCALES, Workload
from benchmarks.alternate import serve
from benchmarks.peers.torch_captioner import Captioner
from input_pipeline.special_tokens import BOS, PAD

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_train_run(workload: Workload, options: argparse.Namespace) -> Callable[[], float]:
    """Returns a function that performs `workload.steps` updates."""
    size = {"layers": workload.layers, "heads": workload.heads, "hidden": workload.feed_forward}
    model = Captioner(workload.vocabulary_size, workload.length, workload.width, cells=workload.memory_length, **size)
    model = model.train().to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    batch = workload.make_batch()
    images = torch.tensor(batch["image"], device=DEVICE)
    tokens = torch.tensor(batch["tokens"], device=DEVICE, dtype=torch.long).flatten(0, 1)
    mixed = torch.autocast(DEVICE.type, torch.bfloat16, enabled=options.dtype == "bfloat16")

    def compute_loss(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        pixels = ((images.float() - 127.5) / 127.5).permute(0, 3, 1, 2)  # a view, so channels_last
        with mixed:
            logits = model(pixels, tokens[:, :-1])
        targets = tokens[:, 1:].flatten()
        return F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=PAD, label_smoothing=0.1)

    compute_loss = torch.compile(compute_loss) if options.compile else compute_loss

    def run() -> float:
        for _ in range(workload.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = compute_loss(images, tokens)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return loss.item()

    return run


def make_encoder_run(workload: Workload, options: argparse.Namespace) -> Callable[[], None]:
    """Returns a function that runs the encoder `workload.steps` times."""
    dtype = getattr(torch, options.dtype)
    model = torchvision.models.efficientnet_b0().features.eval()
    model = model.to(DEVICE, dtype, memory_format=torch.channels_last)
    shape = workload.images, 3, workload.image_size, workload.image_size
    images = torch.randn(shape, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if options.compile else model

    def run() -> None:
        with torch.inference_mode():
            for _ in range(workload.steps):
                features = forward(images)
        features[0, 0, 0, 0].item()  # waits for the device

    return run


def make_decode_run(workload: Workload, options: argparse.Namespace) -> Callable[[], Any]:
    """Returns a function that captions one batch with GPT-2 and cross-attention, of the same dimensions as ours."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
    from transformers.modeling_outputs import BaseModelOutput

    decoder = GPT2Config(
        vocab_size=workload.vocabulary_size,
        n_positions=workload.decoded_tokens + 1,
        n_embd=workload.width,
        n_layer=workload.layers,
        n_head=workload.heads,
        n_inner=workload.feed_forward,
        add_cross_attention=True,
        is_decoder=True,
    )
    encoder = ViTConfig(hidden_size=workload.width, num_hidden_layers=1, num_attention_heads=workload.heads)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    dtype = getattr(torch, options.dtype)
    model = VisionEncoderDecoderModel(config).eval().to(DEVICE, dtype)
    memory = torch.tensor(workload.make_memory(), device=DEVICE, dtype=dtype)
    settings = {
        "num_beams": 1 if options.task == "greedy" else workload.beams,
        "max_new_tokens": workload.decoded_tokens,
        "decoder_start_token_id": 0,
        "bos_token_id": BOS,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "do_sample": False,
        "use_cache": True,
    }

    def run() -> Any:
        with torch.inference_mode():
            captions = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=memory), **settings)
        return captions.cpu().numpy()[:, 1:]

    if run().shape != (workload.decoded_images, workload.decoded_tokens):
        raise AssertionError(f"captions have shape {run().shape}")
    return run


TASKS = {
    "train": make_train_run,
    "encoder": make_encoder_run,
    "greedy": make_decode_run,
    "beam": make_decode_run,
}


def main() -> None:
    """Runs the selected task as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    serve(TASKS[options.task](SCALES[options.scale], options))


if __name__ == "__main__":
    main()

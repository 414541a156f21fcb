"""The same tasks in PyTorch, as a child process of a cell, on a GPU if there is one.

    python -m benchmarks.accelerator.torch_side --task=train --scale=full --dtype=bfloat16 --compile

Images are in channels_last format; attention and AdamW are PyTorch's fused implementations. "bfloat16" is automatic
mixed precision in training, and bfloat16 weights in the encoder and in decoding. "float32" uses TF32, the default of
XLA on a GPU. Decoding uses transformers' `generate`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.accelerator.workload import SCALES, Workload
from benchmarks.alternate import serve
from benchmarks.peers.torch_captioner import Captioner, make_forward_pass, make_train_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_train_run(workload: Workload, options: argparse.Namespace) -> Callable[[], float]:
    """Returns a function that performs `workload.steps` updates."""
    size = {"layers": workload.layers, "heads": workload.heads, "hidden": workload.feed_forward}
    model = Captioner(workload.vocabulary_size, workload.length, workload.width, cells=workload.memory_length, **size)
    model = model.train().to(DEVICE, memory_format=torch.channels_last)
    batch = workload.make_batch()
    images = torch.tensor(batch["image"], device=DEVICE)
    tokens = torch.tensor(batch["tokens"], device=DEVICE, dtype=torch.long).flatten(0, 1)
    mixed_precision = options.dtype == "bfloat16"
    step = make_train_step(model, images, tokens, compiled=options.compile, mixed_precision=mixed_precision)

    def run() -> float:
        for _ in range(workload.steps):
            loss = step()
        return loss.item()  # waits for the device

    return run


def make_encoder_run(workload: Workload, options: argparse.Namespace) -> Callable[[], None]:
    """Returns a function that runs the encoder `workload.steps` times."""
    dtype = getattr(torch, options.dtype)
    size = workload.images, workload.image_size
    forward = make_forward_pass(*size, compiled=options.compile, device=DEVICE, dtype=dtype)

    def run() -> None:
        for _ in range(workload.steps):
            features = forward()
        features[0, 0, 0, 0].item()  # waits for the device

    return run


def make_decode_run(workload: Workload, options: argparse.Namespace) -> Callable[[], Any]:
    """Returns a function that captions one batch with GPT-2 and cross-attention, of the same dimensions as ours."""
    from benchmarks.peers.transformers_captioner import TransformersCaptioner

    captioner = TransformersCaptioner(
        workload.make_memory(),
        vocabulary_size=workload.vocabulary_size,
        layers=workload.layers,
        heads=workload.heads,
        feed_forward=workload.feed_forward,
        tokens=workload.decoded_tokens,
        device=DEVICE,
        dtype=getattr(torch, options.dtype),
    )
    return functools.partial(captioner.run, num_beams=1 if options.task == "greedy" else workload.beams)


TASKS = {
    "train": make_train_run,
    "encoder": make_encoder_run,
    "greedy": make_decode_run,
    "beam": make_decode_run,
}


def main() -> None:
    """Serves the selected task as a child process of a benchmark."""
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

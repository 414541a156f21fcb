"""The captioning server to which `caption-jax serve` is compared: transformers' generate() behind FastAPI.

    python -m benchmarks.peers.transformers_server --port=8001 --tokens=12

A VisionEncoderDecoderModel of a ViT, with the FLOPs of EfficientNet-Lite0, and GPT-2 with
cross-attention, of the dimensions of `configs/flickr8k.py`. All weights are random. As in the tutorials of both
libraries, the handler is a function that FastAPI calls in a thread; it captions one image per call, and a lock keeps
calls from competing for the cores.
"""

from __future__ import annotations

import argparse
import io
import threading

import numpy as np
import torch
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from benchmarks.conditions import list_usable_cores
from benchmarks.decode_workload import SIZES

_IMAGE_SIZE, _VIT_WIDTH, _VIT_LAYERS = 224, 160, 5  # 0.4 billion multiply-adds, like Lite0


def make_model(tokens: int) -> VisionEncoderDecoderModel:
    """Returns a model that writes `tokens` tokens per caption."""
    size = SIZES["flickr8k"]
    encoder = ViTConfig(
        hidden_size=_VIT_WIDTH,
        num_hidden_layers=_VIT_LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * _VIT_WIDTH,
        image_size=_IMAGE_SIZE,
    )
    decoder = GPT2Config(
        vocab_size=size.vocabulary_size,
        n_positions=tokens + 1,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        n_inner=size.feed_forward,
        add_cross_attention=True,
        is_decoder=True,
    )
    torch.manual_seed(0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return VisionEncoderDecoderModel(config).eval()


def make_app(tokens: int) -> FastAPI:
    """Returns the application."""
    model, lock, app = make_model(tokens), threading.Lock(), FastAPI()
    words = [f"word{index}" for index in range(SIZES["flickr8k"].vocabulary_size)]
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "use_cache": True}
    options |= {"decoder_start_token_id": 0, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 1}

    @app.get("/readyz")
    def check_readiness() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/captions")
    def caption(body: bytes = Body(media_type="image/jpeg")) -> dict[str, str]:
        image = (
            Image.open(io.BytesIO(body)).convert("RGB").resize((_IMAGE_SIZE, _IMAGE_SIZE), Image.Resampling.BILINEAR)
        )
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with lock, torch.inference_mode():
            ids = model.generate(pixel_values=pixels, **options)
        return {"caption": " ".join(words[index] for index in ids[0, 1:].tolist())}

    return app


def main() -> None:
    """Runs the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="tokens per caption")
    options = parser.parse_args()
    torch.set_num_threads(len(list_usable_cores()))
    uvicorn.run(make_app(options.tokens), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()

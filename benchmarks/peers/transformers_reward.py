"""A training step on rewards in PyTorch: transformers' GPT-2 with cross-attention, and CIDEr-D in Python.

The captions of a batch are sampled at once, with a key/value cache and no end token, so every step is executed. They
are scored on the host by pycocoevalcap's CIDEr-D, without PTB tokenization, and the loss of a second pass over them is
differentiated. The advantage of a sample is the difference from the mean of the other samples of its image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.peers.transformers_captioner import choose_threads
from caption_jax.specs.model_spec import DecoderSpec
from input_pipeline.special_tokens import BOS, PAD

_MEMORY_LENGTH = 49


def make_reward_step(
    references: Sequence[Sequence[str]], decoder: DecoderSpec, *, samples: int, tokens: int
) -> Callable[[], float]:
    """Returns a function that performs one update and returns the mean reward.

    Args:
        references: captions of each image.
        decoder: dimensions of the decoder.
        samples: captions sampled per image.
        tokens: tokens per caption.
    """
    words = sorted({word for captions in references for caption in captions for word in caption.split()})
    config = GPT2Config(
        vocab_size=len(words) + 4,
        n_positions=tokens + 1,
        n_embd=decoder.width,
        n_layer=decoder.layers,
        n_head=decoder.heads,
        n_inner=decoder.feed_forward,
        add_cross_attention=True,
        is_decoder=True,
    )
    encoder = ViTConfig(hidden_size=decoder.width, num_hidden_layers=1, num_attention_heads=decoder.heads)
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, config))
    memory = torch.randn(len(references), _MEMORY_LENGTH, decoder.width)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), 1e-4)
    options = {"decoder_start_token_id": 0, "bos_token_id": BOS, "eos_token_id": None, "pad_token_id": PAD}

    def compute_rewards(captions: np.ndarray) -> np.ndarray:
        scorer = CiderScorer(n=4, sigma=6.0)
        for index, caption in enumerate(captions):
            text = " ".join(words[token - 4] for token in caption if token >= 4)
            scorer += (text, list(references[index // samples]))
        return scorer.compute_score()[1]

    def step() -> float:
        with torch.inference_mode():
            captions = model.eval().generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=memory),
                max_new_tokens=tokens,
                do_sample=True,
                top_k=0,
                num_return_sequences=samples,
                use_cache=True,
                **options,
            )
        captions = captions.clone()
        rewards = compute_rewards(captions[:, 1:].numpy()).reshape(-1, samples)
        advantages = rewards - (rewards.sum(1, keepdims=True) - rewards) / (samples - 1)
        repeated = BaseModelOutput(last_hidden_state=memory.repeat_interleave(samples, 0))
        logits = model.train()(encoder_outputs=repeated, decoder_input_ids=captions[:, :-1]).logits
        log_probs = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), captions[:, 1:], reduction="none")
        loss = -(torch.tensor(advantages.ravel(), dtype=torch.float32)[:, None] * log_probs).sum() / len(captions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        return float(rewards.mean())

    choose_threads(step)
    return step

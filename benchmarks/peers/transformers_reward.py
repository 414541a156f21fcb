"""A training step on rewards in PyTorch: transformers' GPT-2 with cross-attention, and CIDEr-D in Python.

The captions of a batch are sampled at once, with a key/value cache, until all have ended. They are scored on the host
by pycocoevalcap's CIDEr-D, without PTB tokenization, and the loss of a second pass over them is differentiated,
together with the cross-entropy of the references. The advantage of a sample is the difference from the mean of the
other samples of its image. Captions are padded to the longest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer
from transformers import (
    GPT2Config,
    LogitsProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.peers.transformers_captioner import choose_threads
from caption_jax.specs.model_spec import DecoderSpec
from input_pipeline.special_tokens import BOS, EOS, PAD

_MEMORY_LENGTH, _IGNORED = 49, -100


class _EndBias(LogitsProcessor):
    """Adds a constant to the logit of the end token, so that captions of a random model end."""

    def __init__(self, bias: float):
        self._bias = bias

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores[:, EOS] += self._bias
        return scores


def make_reward_step(
    references: Sequence[Sequence[str]],
    decoder: DecoderSpec,
    *,
    samples: int,
    tokens: int,
    caption_weight: float,
    end_probability: float,
) -> Callable[[], float]:
    """Returns a function that performs one update and returns the mean reward.

    Args:
        references: captions of each image.
        decoder: dimensions of the decoder.
        samples: captions sampled per image.
        tokens: maximum number of tokens per caption.
        caption_weight: weight of the cross-entropy of the references.
        end_probability: probability of the end token after each sampled token.
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
    options = {"decoder_start_token_id": BOS, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    bias = float(np.log(end_probability / (1 - end_probability) * config.vocab_size))
    ids = {word: index for index, word in enumerate(words, start=4)}
    sequences = [torch.tensor([BOS, *map(ids.get, text.split()), EOS]) for texts in references for text in texts]
    reference_tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    captions_per_image = len(references[0])

    def compute_log_probs(captions: torch.Tensor, per_image: int) -> torch.Tensor:
        """Returns the log-probability of each token after the first, 0 for padding."""
        repeated = BaseModelOutput(last_hidden_state=memory.repeat_interleave(per_image, 0))
        logits = model(encoder_outputs=repeated, decoder_input_ids=captions[:, :-1]).logits
        targets = captions[:, 1:].masked_fill(captions[:, 1:] == PAD, _IGNORED)
        return -torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=_IGNORED, reduction="none"
        )

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
                logits_processor=[_EndBias(bias)],
                **options,
            )
        captions = captions.clone()
        rewards = compute_rewards(captions[:, 1:].numpy()).reshape(-1, samples)
        advantages = rewards - (rewards.sum(1, keepdims=True) - rewards) / (samples - 1)
        model.train()
        weights = torch.tensor(advantages.ravel(), dtype=torch.float32)[:, None]
        loss = -(weights * compute_log_probs(captions, samples)).sum() / len(captions)
        is_target = reference_tokens[:, 1:] != PAD
        loss -= caption_weight * compute_log_probs(reference_tokens, captions_per_image).sum() / is_target.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        return float(rewards.mean())

    choose_threads(step)
    return step

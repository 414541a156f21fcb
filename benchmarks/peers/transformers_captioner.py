"""The transformers decoder to which beam search is compared: GPT-2 with cross-attention to a memory.

Like our decoder, it has pre-norm layers, tied embeddings, learned positions and a key/value cache. Its weights are
random, and no token ends a caption, so every step is executed.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from input_pipeline.special_tokens import BOS, PAD


class TransformersCaptioner:
    """Decodes one batch with transformers' `generate`.

    Args:
        memory: Float array [batch, memory length, width].
        tokens: Number of tokens per caption.
        device: Device of the weights and of the memory.
        dtype: Dtype of the weights and of the memory.
    """

    def __init__(
        self,
        memory: np.ndarray,
        *,
        vocabulary_size: int,
        layers: int,
        heads: int,
        feed_forward: int,
        tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        batch, _, width = memory.shape
        decoder = GPT2Config(
            vocab_size=vocabulary_size,
            n_positions=tokens + 1,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_inner=feed_forward,
            add_cross_attention=True,
            is_decoder=True,
        )
        encoder = ViTConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=heads)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        torch.manual_seed(0)
        self._model = VisionEncoderDecoderModel(config).eval().to(device, dtype)
        self._memory = torch.tensor(memory, device=device, dtype=dtype)
        self._shape = batch, tokens
        self._options = {
            "max_new_tokens": tokens,
            "decoder_start_token_id": 0,
            "bos_token_id": BOS,
            "eos_token_id": None,
            "pad_token_id": PAD,
            "do_sample": False,
            "use_cache": True,
        }

    def run(self, num_beams: int) -> np.ndarray:
        """Captions the batch. Returns int tokens [batch, tokens].

        Args:
            num_beams: Hypotheses per image; 1 is greedy decoding.
        """
        encoder_outputs = BaseModelOutput(last_hidden_state=self._memory)
        with torch.inference_mode():
            captions = self._model.generate(encoder_outputs=encoder_outputs, num_beams=num_beams, **self._options)
        captions = captions.cpu().numpy()[:, 1:]
        if captions.shape != self._shape:
            raise AssertionError(f"captions have shape {captions.shape}, expected {self._shape}")
        return captions

"""Caption decoding: greedy decoding, beam search and sampling, each a single jitted loop over the decoder's cache."""

from caption_jax.decoding.beam import LENGTH_PENALTIES, beam_search
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.dispatch import decode
from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.reranking import rerank, similarities
from caption_jax.decoding.sampling import sample

__all__ = [
    "LENGTH_PENALTIES",
    "Decoded",
    "beam_search",
    "decode",
    "greedy",
    "rerank",
    "sample",
    "similarities",
]

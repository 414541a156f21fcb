"""Caption decoding: greedy decoding, beam search and sampling, each a single jitted loop over the decoder's cache."""

from caption_jax.decoding.beam import LENGTH_PENALTIES, beam_search
from caption_jax.decoding.consensus import Consensus, expected_scores
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.dispatch import decode
from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.reranking import consensus_scores, rerank, similarities
from caption_jax.decoding.sampling import sample

__all__ = [
    "LENGTH_PENALTIES",
    "Consensus",
    "Decoded",
    "beam_search",
    "consensus_scores",
    "decode",
    "expected_scores",
    "greedy",
    "rerank",
    "sample",
    "similarities",
]

"""The FLOPs that the benchmarks of models count, and their utilisation of the peak of matrix products."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import peak
from benchmarks.alternate import Seconds
from benchmarks.decode_workload import MEMORY_LENGTH, Size, Workload, count_flops, make_memory

TINY = Size(layers=2, width=32, heads=4, feed_forward=48, vocabulary_size=100, variant="micro")


def test_decoding_flops_equal_those_of_the_traced_decoder_for_one_token():
    import jax
    import jax.numpy as jnp

    from caption_jax.models.backbones.efficientnet import EfficientNet
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.models.decoder import Decoder
    from caption_jax.models.image_encoder import ImageEncoder
    from caption_jax.planning.flops import count_matrix_flops

    workload = Workload(batch=3, beams=5, tokens=1)
    decoder = Decoder(TINY.vocabulary_size, TINY.layers, TINY.width, TINY.heads, TINY.feed_forward, max_length=2)
    model = ImageCaptioningModel(ImageEncoder(EfficientNet(TINY.variant), width=TINY.width), decoder)
    memory, tokens = make_memory(TINY, workload), jnp.zeros((workload.batch, workload.beams, 1), jnp.int32)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, memory, method="decode"))

    def decode(_, variables, memory, tokens):
        return model.apply(variables, tokens, memory, method="decode").logits

    assert count_flops(TINY, workload) == count_matrix_flops(decode, (), variables, memory, tokens).forward


def test_later_tokens_attend_to_more_tokens():
    flops = [count_flops(TINY, Workload(2, 4, tokens)) for tokens in (1, 2, 3, 4)]
    # Each further token attends to one more: scores and weighted sums, in each layer, for 2 x 4 beams.
    np.testing.assert_array_equal(np.diff(flops, 2), 2 * 2 * TINY.width * TINY.layers * 8)
    assert make_memory(TINY, Workload(2, 4, 1)).shape == (2, MEMORY_LENGTH, TINY.width)


def test_encoder_flops_include_depthwise_convolutions_and_grow_with_the_batch():
    from benchmarks.encoder import count_flops as count_encoder_flops

    single = count_encoder_flops(1)
    assert single / 2 == pytest.approx(0.39e9, rel=0.02)  # multiply-adds in table 2 of the paper of EfficientNet
    assert count_encoder_flops(2) == 2 * single


@pytest.mark.slow
def test_the_step_counts_more_than_twice_its_forward_pass():
    from benchmarks.encoder import count_flops as count_encoder_flops
    from benchmarks.train_step import count_flops as count_step_flops

    encoder, decoder_parameters, tokens = count_encoder_flops(1), 6 * (6 * 512**2 + 2 * 512 * 2048) + 512 * 10_000, 39
    flops = count_step_flops(1)
    assert flops > 2.9 * encoder + 6 * tokens * decoder_parameters
    assert flops < 1.3 * (3 * encoder + 6 * tokens * decoder_parameters)
    assert count_step_flops(2) == 2 * flops


def test_the_peak_is_that_of_the_faster_library(capsys):
    seconds = {"ours": Seconds(2.0, 4.0), "product_numpy": Seconds(0.5, 1.0), "product_jnp": Seconds(0.4, 1.1)}
    others, flops_per_second = peak.split_peak(seconds)
    assert list(others) == ["ours"]
    assert flops_per_second == pytest.approx(2 * 2048**3 / 0.4)
    assert peak.split_peak(seconds, "cpu")[1] == pytest.approx(2 * 2048**3 / 1.0)
    assert peak.print_utilisation("batch 1", 30e9, 2.0, 60e9) == 0.25
    assert "15 GFLOP/s of a peak of 60; utilisation 0.250" in capsys.readouterr().out


@pytest.mark.parametrize("library", peak.LIBRARIES)
def test_both_libraries_multiply_matrices(library, monkeypatch):
    monkeypatch.setattr(peak, "MATRIX_SIZE", 8)
    assert np.isfinite(peak.make_matrix_product(library)()).all()

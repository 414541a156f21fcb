"""Operations are assigned to parts of the model by their path in the traced program."""

from __future__ import annotations

import pytest

from caption_jax.planning.model_parts import PARTS, find_part, is_backward

FORWARD, BACKWARD = "jit(step)/jvp(objectives)/captions", "jit(step)/transpose(jvp(objectives))/captions"
LAYER = "ImageCaptioningModel.decode/decoder/layer_0"


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/jvp(Model.encode_images)/image_encoder/backbone/stem/conv/conv_general_dilated", "encoder, stem"),
        ("jit(step)/transpose(jvp(Model))/image_encoder/backbone/stage_1/block_0/expand/norm/mul", "encoder, 1 x 1"),
        ("jit(step)/jvp(Model)/image_encoder/backbone/stage_2/block_1/depthwise/conv/conv", "encoder, depthwise"),
        (
            "jit(step)/jvp(Model)/image_encoder/backbone/stage_2/block_1/squeeze/expand/dot_general",
            "encoder, squeeze and excitation",
        ),
        ("jit(step)/jvp(Model)/image_encoder/grid/norm/add", "encoder, other"),
        (f"{FORWARD}/cross_entropy/cond/branch_0_fun/while/body/...td,vd->...tv/dot_general", "loss"),
        (f"{BACKWARD}/cross_entropy/mul", "loss"),
        (f"{FORWARD}/{LAYER}/self_attention/qkv/dot_general", "attention projections"),
        (f"{FORWARD}/{LAYER}/layer_0.project_memory/cross_attention/key_value/add", "attention projections"),
        (f"{BACKWARD}/{LAYER}/self_attention/while/body/checkpoint/dot_general", "self-attention"),
        (f"{FORWARD}/{LAYER}/cross_attention/reduce_max", "cross-attention"),
        (f"{FORWARD}/{LAYER}/self_attention_norm/rsqrt", "norms"),
        (f"{FORWARD}/{LAYER}/residual_dropout/while/body/threefry2x32", "dropout"),
        (f"{FORWARD}/{LAYER}/feed_forward/Dropout_0/select_n", "dropout"),
        (f"{FORWARD}/{LAYER}/feed_forward/expand/dot_general", "feed-forward"),
        (f"{BACKWARD}/ImageCaptioningModel.decode/decoder/decoder._embed/jit(_take)/scatter-add", "embedding"),
        (f"{FORWARD}/{LAYER}/add", "decoder, other"),
        ("jit(step)/jvp(objectives)/contrastive/text_encoder/roberta/dot_general", "text encoder"),
        ("jit(step)/jvp(objectives)/contrastive/reduce_sum", "contrastive objective"),
        ("jit(step)/jvp(objectives)/unlikelihood/while/body/checkpoint/exp", "other objectives"),
        ("jit(step)/augmentation/mul", "augmentation"),
        ("jit(step)/optimizer/integer_pow", "optimizer"),
        ("jit(decode)/decoding/while/body/top_k", "decoding"),
        ("jit(decode)/decoding/while/body/decoder/layer_0/self_attention/dot_general", "self-attention"),
        ("jit(step)/reduce_sum", "other"),
        ("", "other"),
    ],
)
def test_paths_determine_the_part(path, part):
    assert find_part(path) == part
    assert part in PARTS


def test_the_gradient_of_the_loss_belongs_to_the_forward_pass():
    assert is_backward(f"{BACKWARD}/{LAYER}/feed_forward/expand/dot_general")
    assert not is_backward(f"{FORWARD}/{LAYER}/feed_forward/expand/dot_general")
    assert not is_backward(f"{BACKWARD}/cross_entropy/mul")

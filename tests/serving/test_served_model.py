"""The programs of a server give the captions of `Captioner`, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import small_run
from random_model import write_random_model

import caption_jax
from caption_jax.errors import ConfigError
from caption_jax.inference.captioner import Captioner
from caption_jax.inference.image_attention import find_grid_side
from caption_jax.runtime.cached_program import CachedProgram
from caption_jax.serving.caption_request import CaptionOptions
from caption_jax.serving.caption_service import Row
from caption_jax.serving.served_model import ServedModel
from caption_jax.specs import DecodeSpec
from input_pipeline.errors import ImageError
from input_pipeline.limits import Limits

DECODE = DecodeSpec(max_length=10)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "boxes"
    write_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def model(workdir) -> ServedModel:
    return ServedModel(workdir, "best", DECODE, (3,), Limits())


def caption_batch(model: ServedModel, *requests: tuple[str, dict]) -> list[list[str]]:
    """Returns the captions of coloured boxes with options, as one batch of four."""
    resolved = [model.offer.resolve(CaptionOptions(**options)) for _, options in requests]
    rows = [
        Row(model.load(small_run.box_image(colour)), request)
        for (colour, _), request in zip(requests, resolved, strict=True)
    ]
    outputs = model.run(resolved[0].program, rows, 4)
    return [[caption.text for caption in captions] for captions in outputs]


def load_captioner(workdir: Path, **decode) -> Captioner:
    return caption_jax.load(workdir, decode_config=dataclasses.replace(DECODE, **decode), batch_size=1)


OPTIONS = ({}, {"prefix": "a green"}, {"max_length": 5}, {"prefix": "on", "max_length": 6})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_rows_with_different_options_have_the_captions_of_separate_programs(model, workdir, method):
    requests = [("red", {"method": method, **options}) for options in OPTIONS]
    for (colour, options), captions in zip(requests, caption_batch(model, *requests), strict=True):
        decode = {"num_beams": 3, **options, "at_limit": "end" if "max_length" in options else "cut"}
        assert captions[0] == load_captioner(workdir, **decode).caption(small_run.box_image(colour)).text
        assert captions[0].startswith(options.get("prefix", "")) and len(captions) == {"greedy": 1, "beam": 3}[method]


def test_log_probabilities_are_those_of_the_captioner(model, workdir):
    image = small_run.box_image("blue")
    request = model.offer.resolve(CaptionOptions())
    ((caption,),) = model.run(request.program, [Row(model.load(image), request)], 4)
    expected = load_captioner(workdir).caption(image)
    assert caption.tokens == expected.tokens and caption.log_prob == pytest.approx(expected.log_prob, abs=1e-4)


@pytest.mark.slow
def test_attention_over_the_grid_uses_programs_compiled_at_the_start(model, monkeypatch):
    assert model.offer.attention
    model.warm_up((1, 4))
    monkeypatch.setattr(CachedProgram, "_make_program", None)  # a program that is not ready fails
    pixels = model.load(small_run.box_image())
    options = ({"attention": True}, {}, {"attention": True, "prefix": "on"}, {"attention": True})
    for method in ("greedy", "beam"):
        asked = [model.offer.resolve(CaptionOptions(method=method, **values)) for values in options]
        captions = [best for best, *_ in model.run(asked[0].program, [Row(pixels, request) for request in asked], 4)]
        assert not hasattr(captions[1], "attention")
        attended = [captions[0], captions[2], captions[3]]
        for caption in attended:
            assert " ".join(caption.attention.words) == caption.text
            assert caption.attention.weights.shape == (len(caption.attention.words), 4, 4)
            assert caption.attention.weights.sum((1, 2)) == pytest.approx(1, abs=1e-5)
        first, prefixed, same = (caption.attention.weights for caption in attended)
        assert (first == same).all() and abs(first[1] - prefixed[1]).max() > 1e-4  # each row has its own words
        (alone,) = model.run(asked[2].program, [Row(pixels, asked[2])], 1)
        assert alone[0].attention.weights == pytest.approx(prefixed, abs=1e-5)


TEXTS = ("a green box on the left", "a red box")


@pytest.fixture(scope="module")
def context_workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "context"
    write_random_model(folder, max_texts=2)
    return folder


@pytest.mark.slow
def test_context_belongs_to_its_row_and_changes_its_attention(context_workdir):
    model = ServedModel(context_workdir, "best", DECODE, (), Limits())
    pixels = model.load(small_run.box_image("red"))
    contexts = ((), TEXTS, TEXTS[:1], (" ",))
    requests = [model.offer.resolve(CaptionOptions(context=context, attention=True)) for context in contexts]
    captions = [best for (best,) in model.run(requests[0].program, [Row(pixels, request) for request in requests], 4)]
    captioner = load_captioner(context_workdir)
    for caption, context in zip(captions, contexts, strict=True):
        expected = captioner.caption(small_run.box_image("red"), context=context)
        assert caption.text == expected.text and caption.log_prob == pytest.approx(expected.log_prob, rel=1e-5)
    assert len({round(caption.log_prob, 3) for caption in captions[:3]}) == 3
    assert captions[3].text == captions[0].text
    sums = [caption.attention.weights.sum((1, 2)).mean() for caption in captions]
    assert sums[0] == pytest.approx(1, abs=1e-5) and max(sums[1:3]) < 0.99  # the rest belongs to the context


def test_only_a_square_grid_in_the_memory_offers_attention():
    shapes = [{"grid": {"position": np.zeros((cells, 8))}, "pooled": {}} for cells in (49, 6)]
    sides = [find_grid_side({"params": {"image_encoder": parameters}}) for parameters in (*shapes, {"pooled": {}})]
    assert sides == [7, 0, 0]


def test_images_and_prefixes_are_checked_before_they_join_a_batch(model):
    with pytest.raises(ImageError):
        model.load(b"no image")
    assert model.offer.encode("a red box") and model.offer.max_length == 10


def test_the_default_program_is_that_of_the_config(workdir):
    beam = ServedModel(workdir, "best", dataclasses.replace(DECODE, method="beam", num_beams=4), (3,), Limits())
    assert [(program.method, program.beams) for program in beam.offer.programs] == [
        ("beam", 4),
        ("greedy", 1),
        ("beam", 3),
    ]
    assert beam.describe()["decode"].startswith("beam") and beam.describe()["weights"] == "float32"
    small = ServedModel(workdir, "best", DECODE, (), Limits(), "bfloat16")
    assert small.describe()["weights"] == "bfloat16"
    with pytest.raises(ConfigError, match=r'config\.decode\.method="sample" cannot be served.*greedy or beam'):
        ServedModel(workdir, "best", dataclasses.replace(DECODE, method="sample"), (), Limits())

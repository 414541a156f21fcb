"""Options of requests are checked against the programs that are compiled."""

from __future__ import annotations

import dataclasses

import pytest
from fake_model import FakeModel

from caption_jax.serving.caption_request import CaptionOptions, CaptionRequest, Program
from caption_jax.serving.refusals import OptionError

OFFER = FakeModel(beams=(3, 5)).offer


def resolve(**values) -> CaptionRequest:
    return OFFER.resolve(CaptionOptions.from_mapping(values))


@pytest.mark.parametrize(
    ("values", "request_"),
    [
        ({}, CaptionRequest(Program("greedy"))),
        ({"method": "beam"}, CaptionRequest(Program("beam", 3))),
        ({"beams": "5", "candidates": "5"}, CaptionRequest(Program("beam", 5), candidates=5)),
        ({"beams": 1}, CaptionRequest(Program("greedy"))),
        ({"prefix": "a dog", "max_length": 4}, CaptionRequest(Program("greedy"), prefix=(4, 5), max_length=4)),
        ({"prefix": " "}, CaptionRequest(Program("greedy"))),
        ({"attention": True}, CaptionRequest(Program("greedy"), attention=True)),
        ({"attention": "true", "beams": 3}, CaptionRequest(Program("beam", 3), attention=True)),
        ({"attention": "false"}, CaptionRequest(Program("greedy"))),
    ],
)
def test_valid_options(values, request_):
    assert resolve(**values) == request_


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 3}, "unknown option 'beam'; the options are method, beams, candidates, prefix, context, max_length"),
        ({"method": "sample"}, "method='sample': the value must be greedy or beam"),
        ({"method": 3}, "method: the value must be a text"),
        ({"attention": 1}, "attention: the value must be true or false"),
        ({"attention": "yes"}, "attention: the value must be true or false"),
        ({"attention": []}, "attention: the value must be true or false"),
        ({"beams": 4}, r"beams=4: this server has compiled beam search with 3, 5 \(--beams\)"),
        ({"beams": "1e3"}, "beams: the value must be a whole number"),
        ({"beams": True}, "beams: the value must be a whole number"),
        ({"beams": -3}, "beams: the value must be a whole number"),
        ({"beams": 3, "method": "greedy"}, "beams=3: greedy decoding has one; set method=beam"),
        ({"candidates": 2}, r"candidates=2: greedy with 1 beam\(s\) returns 1 to 1"),
        ({"candidates": 0, "beams": 3}, "returns 1 to 3"),
        ({"max_length": 21}, "max_length=21: the value must be from 3 to 20"),
        ({"prefix": "x" * 201}, "prefix: has 201 characters, more than 200"),
        ({"prefix": "what?"}, "prefix: contains a word that is not in the vocabulary"),
        ({"prefix": "a brown dog", "max_length": 4}, "prefix: has 3 tokens; with this max_length, at most 2 fit"),
    ],
)
def test_invalid_options_are_refused_in_one_line(values, message):
    with pytest.raises(OptionError, match=message) as error:
        resolve(**values)
    assert "\n" not in str(error.value)


def test_a_model_without_a_grid_offers_no_attention():
    with pytest.raises(OptionError, match="attention=true: the decoder of this model does not attend to a grid"):
        FakeModel(attention=False).offer.resolve(CaptionOptions(attention=True))


CONTEXT_OFFER = dataclasses.replace(OFFER, max_texts=2)


@pytest.mark.parametrize(
    ("value", "context"), [("a dog", ("a dog",)), (["a", " "], ("a",)), (["a", "b"], ("a", "b")), ([], ())]
)
def test_context_is_a_text_or_a_list_of_texts(value, context):
    assert CONTEXT_OFFER.resolve(CaptionOptions.from_mapping({"context": value})).context == context


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "context: the value must be a text or a list of texts"),
        (["a", 3], "context: the value must be a text or a list of texts"),
        (["a", "b", "c"], "context: has 3 texts, more than 2"),
        (["x" * 1001], "context: a text has 1001 characters, more than 1000"),
        (["\ud800"], "context: contains half of a character"),
    ],
)
def test_invalid_context_is_refused(value, message):
    with pytest.raises(OptionError, match=message):
        CONTEXT_OFFER.resolve(CaptionOptions.from_mapping({"context": value}))


def test_a_model_without_context_says_so():
    with pytest.raises(OptionError, match="context: this model was trained without context"):
        OFFER.resolve(CaptionOptions(context=("a dog",)))


def test_a_server_without_beam_search_says_so():
    with pytest.raises(OptionError, match=r"method=beam: this server has compiled no beam search \(--beams\)"):
        FakeModel(beams=()).offer.resolve(CaptionOptions(method="beam"))

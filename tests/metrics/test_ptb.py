"""The PTB tokenizer compared with the Java implementation, live and through a golden file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adversarial_strings import KINDS, make_adversarial_lines
from fuzz_strings import make_fuzzed_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_tokenizer import find_jar, read_captions, run_reference_tokenizer

from caption_jax.metrics.ptb import PUNCTUATION, tokenize, tokenize_all
from caption_jax.metrics.ptb.tokens import split

GOLDEN = Path(__file__).parents[1] / "golden" / "ptb_tokens.json"
requires_java = pytest.mark.skipif(find_jar() is None, reason="requires Java and pycocoevalcap's tokenizer")


def find_differences(lines: list[str], expected: list[str]) -> list[tuple[str, str, str]]:
    actual = tokenize_all(lines)
    return [row for row in zip(lines, expected, actual, strict=True) if row[1] != row[2]]


def test_tokens_match_the_golden_file():
    pairs = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(pairs) > 1000
    assert not find_differences([line for line, _ in pairs], [tokens for _, tokens in pairs])


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man, (in red) isn't riding.", "a man -lrb- in red -rrb- is n't riding"),
        ("Cannot   we?!  ...", "can not we ?!"),
        ("a T-shirt at 5 p.m. on St. John's day", "a t-shirt at 5 p.m. on st. john 's day"),
        ("“quoted” ‘words’ — 1½ miles", "quoted words 1 1/2 miles"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_tokens_of_example_captions(caption, tokens):
    assert tokenize(caption) == tokens


def test_the_token_of_a_final_letter_depends_on_the_next_line():
    assert tokenize("he has a plan b.") == "he has a plan b."
    assert tokenize_all(["he has a plan b.", "The dog", "no.", "5 dogs"]) == [
        "he has a plan b",
        "the dog",
        "no.",
        "5 dogs",
    ]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abcM s.,'’\"-()<>/&;:5½é😀@# \u00a0\t", max_size=24))
def test_cached_chunks_match_whole_lines(line):
    assert tokenize(line) == " ".join(token for token in split(line) if token not in PUNCTUATION)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_string_can_be_tokenized(text):
    tokens = tokenize(text)
    assert tokens == " ".join(tokens.split(" ")) and "\n" not in tokens
    assert not PUNCTUATION & set(tokens.split(" "))


@requires_java
@pytest.mark.java
def test_all_captions_match_the_reference(shared_data):
    captions = read_captions(shared_data)
    assert len(captions) == 35400
    assert not find_differences(captions, run_reference_tokenizer(captions))


@requires_java
@pytest.mark.java
@pytest.mark.parametrize("seed", [1, 2])
def test_fuzzed_captions_match_the_reference(shared_data, seed):
    lines = make_fuzzed_lines(20_000, read_captions(shared_data), seed)
    differences = find_differences(lines, run_reference_tokenizer(lines))
    assert len(differences) <= len(lines) // 1000, differences[:20]


@requires_java
@pytest.mark.java
@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_strings_nearly_match_the_reference(kind):
    lines = make_adversarial_lines(kind, 15_000)
    differences = find_differences(lines, run_reference_tokenizer(lines))
    print(f"{kind}: {len(differences)} of {len(lines)} differ: {differences[:12]}")  # for docs/metrics.md
    assert len(differences) <= len(lines) // 1000

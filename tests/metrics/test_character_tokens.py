"""The tokenizer for languages without spaces between words, and the warning for captions that PTB cannot tokenize."""

from __future__ import annotations

import warnings

import pytest

from caption_jax.errors import ConfigError
from caption_jax.metrics import TOKENIZERS, TokenizationWarning, diversity, java_scores, protocol, score
from caption_jax.metrics.character_tokens import tokenize_characters
from caption_jax.metrics.tokenization import tokenize_captions
from caption_jax.specs import MetricsSpec

EXAMPLES = {
    "一只狗，在草地上跑。": "一 只 狗 在 草 地 上 跑",
    "2只 Dogs。": "2 只 dogs",
    "犬が走っています！": "犬 が 走 っ て い ま す",
    "コーヒー": "コ ー ヒ ー",
    "개가 달린다": "개 가 달 린 다",
    "สุนัขวิ่ง": "สุ นั ข วิ่ ง",  # combining vowels and tone marks belong to their consonant
    "Ｔ恤 ｶﾞ": "t 恤 ガ",  # full-width and half-width characters are normalised
    "か\u3099": "が",
    "〇々": "〇 々",
    "𠮷野家": "𠮷 野 家",
    "A man's dog, 3.5 kg 🐕": "a man s dog 3 5 kg",
    "Ein großer Hund, café, кот": "ein großer hund café кот",
    "\u0301x": "x",
    "。！？": "",
    "": "",
}
CHINESE = {
    "references": {1: ["一只狗在草地上跑", "一只棕色的狗在跑"], 2: ["两只猫在沙发上睡觉", "两只猫睡着了"]},
    "hypotheses": {1: "一只狗在草地上跑步", 2: "两只猫躺在沙发上"},
}


@pytest.mark.parametrize("caption", EXAMPLES)
def test_captions_are_tokenized_into_characters(caption):
    assert tokenize_characters(caption) == EXAMPLES[caption]


def test_scores_of_characters_count_partial_matches():
    scores = score(**CHINESE, tokenizer="characters")
    assert scores["BLEU-1"] == pytest.approx(15 / 17) and scores["CIDEr-D"] > 1
    same = {image_id: captions[0] for image_id, captions in CHINESE["references"].items()}
    assert score(CHINESE["references"], same, tokenizer="characters")["exact_match"] == 1


@pytest.mark.parametrize(
    "captions",
    [
        list(CHINESE["hypotheses"].values()),
        ["犬が草の上を走っています", "ソファの上に二匹の猫がいます"],
        ["สุนัขวิ่งบนหญ้า", "แมวสองตัวนอนบนโซฟา"],
        ["𠮷𠮷𠮷", "𠮷𠮷"],  # letters that the PTB tokenizer drops
        ["一只狗在草地上跑，一只猫在沙发上睡觉", "a dog", "两只猫躺在沙发上"],
    ],
)
def test_scoring_warns_if_ptb_finds_no_words(captions):
    references, hypotheses = {i: [text] for i, text in enumerate(captions)}, dict(enumerate(captions))
    with pytest.warns(TokenizationWarning, match=r"no words in .* captions.*tokenizer='characters'"):
        score(references, hypotheses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(references, hypotheses, tokenizer="characters")


@pytest.mark.parametrize(
    "captions",
    [
        ["a dog", "dog"],
        ["dog", ""],
        [".", "🐕"],
        ["개가 풀밭에서 달린다", "고양이 두 마리"],  # Korean has spaces
        ["一只 狗 在 草地 上 奔跑", "两只 猫 睡 在 沙发 上"],  # words have been separated
        ["собака бежит", "ένας σκύλος τρέχει"],
        ["a dog on a sign that says 草地", "two cats", "a red ball"],
    ],
)
def test_scoring_does_not_warn_if_words_are_separated(captions):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score({i: [text] for i, text in enumerate(captions)}, dict(enumerate(captions)))


def test_the_protocol_states_the_tokenizer():
    assert "PTB" in protocol()["tokenization"]
    assert protocol(tokenizer="characters")["tokenization"].startswith("characters of CJK")
    assert "not comparable" in protocol(tokenizer="characters")["metrics"]


def test_statistics_of_characters_omit_english_function_words():
    statistics = diversity(CHINESE["hypotheses"], ["一只狗在草地上跑步。"], tokenizer="characters")
    assert statistics["mean_length"] == 8.5 and statistics["novel"] == 0.5
    assert "function_word_ending" not in statistics
    scores, absent = java_scores(**CHINESE, tokenizer="characters")
    assert not scores and "made for English words" in absent["METEOR"]


def test_unknown_tokenizers_are_rejected():
    for call in (
        lambda: score({1: ["a"]}, {1: "a"}, tokenizer="words"),
        lambda: protocol(tokenizer="words"),
        lambda: tokenize_captions(["a"], "words"),
    ):
        with pytest.raises(ConfigError, match=r"tokenizer is 'words'; it must be one of 'ptb', 'characters'"):
            call()


def test_the_config_key_accepts_every_tokenizer():
    for tokenizer in TOKENIZERS:
        assert MetricsSpec(tokenizer).tokenizer == tokenizer
    with pytest.raises(ConfigError, match=r"config\.metrics\.tokenizer is 'jieba'"):
        MetricsSpec("jieba")

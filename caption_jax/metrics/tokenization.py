"""The tokenizers of the metrics, by name, and a warning for captions in which the chosen one does not find words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from caption_jax.metrics import ptb
from caption_jax.metrics.character_tokens import count_unspaced, tokenize_characters
from input_pipeline.errors import ConfigError

# Descriptions for the evaluation protocol.
TOKENIZERS = {
    "ptb": "port of COCO's PTB tokens (CoreNLP 3.4.1 PTBTokenizer, lower case, punctuation removed)",
    "characters": "characters of CJK, Thai, Lao, Tibetan, Myanmar and Khmer; words of other scripts (NFKC, lower case, "
    "punctuation removed)",
}
_MAX_CHARACTERS_PER_TOKEN = 4.0  # more than in texts whose words are separated by spaces


class TokenizationWarning(UserWarning):
    """The tokenizer does not find words in most of the captions, so scores are not meaningful."""


def tokenize_captions(captions: Sequence[str], tokenizer: str = "ptb") -> list[str]:
    """Tokenizes captions as the consecutive lines of one file. The tokens of a caption are joined with spaces.

    Args:
        captions: the captions.
        tokenizer: "ptb" (English; the tokens of COCO's tools) or "characters" (see `tokenize_characters`).

    Raises:
        ConfigError: the tokenizer is unknown.
    """
    check_tokenizer(tokenizer)
    return ptb.tokenize_all(captions) if tokenizer == "ptb" else list(map(tokenize_characters, captions))


def check_tokenizer(tokenizer: str) -> None:
    """Raises ConfigError if there is no tokenizer of this name."""
    if tokenizer not in TOKENIZERS:
        raise ConfigError(f"tokenizer is {tokenizer!r}; it must be one of {', '.join(map(repr, TOKENIZERS))}")


def warn_if_unsuitable(captions: Sequence[str], tokens: Sequence[str]) -> None:
    """Issues a `TokenizationWarning` if PTB tokens of most captions are not words but whole phrases, or missing.

    Args:
        captions: the captions.
        tokens: the PTB tokens of each caption, joined with spaces.
    """
    unsuitable = sum(map(_lacks_words, captions, tokens))
    if 2 * unsuitable > len(captions):
        message = (
            f"the PTB tokenizer, which is made for English, finds no words in {unsuitable} of {len(captions)} captions "
            "(a language without spaces between words?), so the scores are not meaningful: use tokenizer='characters' "
            "(--tokenizer=characters, config.metrics.tokenizer='characters')"
        )
        warnings.warn(message, TokenizationWarning, stacklevel=3)


def _lacks_words(caption: str, tokens: str) -> bool:
    if caption.isascii():
        return False
    count = sum(any(map(str.isalnum, token)) for token in tokens.split())
    unspaced = count_unspaced(caption)
    if count <= 1:
        return unspaced > 1 or (count == 0 and any(map(str.isalnum, caption)))
    return unspaced > _MAX_CHARACTERS_PER_TOKEN * count

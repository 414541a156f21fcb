"""Short explanations of metrics, for the report and the terminal."""

from __future__ import annotations

# Metrics that papers print in hundredths.
PRINTED_IN_HUNDREDTHS = ("CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "SPICE", "ROUGE-L")

_DESCRIPTIONS = {
    "CIDEr-D": "agreement with the references (0 to 10); rare words count more",
    "BLEU-1": "unigram precision with brevity penalty (0 to 1)",
    "BLEU-2": "n-grams up to length 2",
    "BLEU-3": "n-grams up to length 3",
    "BLEU-4": "n-grams up to length 4",
    "ROUGE-L": "longest common subsequence of words (0 to 1)",
    "METEOR": "word matches, including stems, synonyms and paraphrases (0 to 1)",
    "SPICE": "matches of objects, attributes and relations (0 to 1)",
    "exact_match": "fraction of captions identical to a reference",
    "loss": "of the references, in nats per token (lower is better)",
    "token_accuracy": "fraction of reference tokens predicted correctly",
    "distinct-1": "distinct words / total words",
    "distinct-2": "distinct word pairs / total word pairs",
    "vocabulary": "number of distinct words",
    "unique": "fraction of distinct captions",
    "most_common": "fraction of images with the most frequent caption",
    "novel": "fraction of captions not in the training captions",
    "mean_length": "words per caption",
    "function_word_ending": "fraction of captions that end in “a”, “the”, “with”, ...",
}


def describe_metric(name: str) -> str:
    """Returns a short explanation of a metric; "" if the metric is unknown."""
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    direction, is_recall, count = name.partition("_R@")  # the names of `retrieval_scores`
    if is_recall:
        return f"fraction of {direction.partition('_')[0]}s with a correct match in the top {count}"
    return "median rank of the first correct match (1 is best)" if name.endswith("_median_rank") else ""


def format_as_in_papers(value: float, name: str) -> str:
    """Formats a score as papers print it, in hundredths: a CIDEr-D of 0.308 is 30.8. "" for other metrics."""
    return f"{100 * value:.1f}" if name in PRINTED_IN_HUNDREDTHS else ""

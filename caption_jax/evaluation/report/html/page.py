"""The page itself: from numbers and pictures to the text of an HTML file."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from caption_jax.evaluation.assessment import CONFIDENCE, Assessment
from caption_jax.evaluation.report.html.charts import training_charts
from caption_jax.evaluation.report.html.examples import Example, Picture
from caption_jax.evaluation.report.html.markup import Markup, join, tag
from caption_jax.evaluation.report.html.style import STYLE
from caption_jax.evaluation.report.terminal import decode_settings
from caption_jax.telemetry.metrics_file import Row

# What a browser may load: nothing from anywhere, pictures and style out of this file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_HEADLINES = ("CIDEr-D", "BLEU-4", "METEOR", "SPICE", "ROUGE-L")
_OF_AN_IMAGE = ("CIDEr-D", "BLEU-4", "ROUGE-L")
_MEANINGS = {
    "CIDEr-D": "agreement with the references; rare words count more (0 to 10)",
    "BLEU-1": "words shared with the references (0 to 1)",
    "BLEU-2": "with word pairs",
    "BLEU-3": "with runs of three words",
    "BLEU-4": "with runs of four words",
    "ROUGE-L": "longest common word sequence (0 to 1)",
    "METEOR": "words shared, with stems, synonyms and paraphrases (0 to 1)",
    "SPICE": "objects, attributes and relations shared (0 to 1)",
    "exact_match": "share of captions that are a reference word for word",
    "loss": "of the references, nats a token (lower is better)",
    "token_accuracy": "share of the references' tokens predicted",
    "distinct-1": "different words, share of all words",
    "distinct-2": "different word pairs, share of all pairs",
    "vocabulary": "different words",
    "unique": "different captions, share of all captions",
    "novel": "share of captions that are no training caption",
    "mean_length": "words a caption",
    "function_word_ending": "share of captions that end in “a”, “the”, “with”, ...",
}
_PERCENT = f"{100 * CONFIDENCE:g} %"
_INTERVALS_NOTE = f"With {_PERCENT} intervals: where the score lies when the images are drawn anew."
_TRAINING_NOTE = "Numbers logged during training: single steps as a thin line, smoothed as a thick one."
_LOOKED_NOTE = (
    "Cross-attention while each word was predicted, averaged over layers and heads. Each picture is scaled to its own "
    "brightest place."
)
_GROUPS = {
    "best": ("Best captions", "The images with the highest CIDEr-D."),
    "worst": ("Worst captions", "The images with the lowest CIDEr-D."),
    "random": ("Random images", "Drawn at random from the split, the same ones for every evaluation of it."),
}


def render(run: str, assessment: Assessment, examples: Mapping[str, Sequence[Example]], rows: Sequence[Row]) -> Markup:
    """The whole page.

    Args:
        run: what the run is called.
        assessment: what was found.
        examples: images of the groups "best", "worst" and "random".
        rows: the run's logged numbers.
    """
    how = assessment.protocol
    title = f"Captions of {run}, {how['split']} split"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(STYLE), Markup(f":root {{ --shape: {_shape(examples):.3f}; }}\n")),
    )
    charts = training_charts(rows)
    body = tag(
        "body",
        _header(run, how),
        tag(
            "main",
            _headlines(assessment),
            tag(
                "div",
                _section("Scores", _INTERVALS_NOTE, _score_table(assessment)),
                _section("The captions as a whole", "Whatever the images show.", _diversity_table(assessment)),
                class_="columns",
            ),
            charts and _section("Training", _TRAINING_NOTE, tag("div", charts, class_="columns")),
            *(_section(*_GROUPS[name], _cards(found)) for name, found in examples.items() if found),
            _looked(examples),
            _unreadable(assessment),
            _section("How these numbers came about", "", _protocol(how)),
        ),
    )
    return Markup(f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n")


def _shape(examples: Mapping[str, Sequence[Example]]) -> float:
    """Width by height of the frames that images are shown in: as most of them are."""
    found = [example.picture.width / example.picture.height for group in examples.values() for example in group]
    return min(max(statistics.median(found), 0.75), 1.5) if found else 1.0


def _header(run: str, how: Mapping[str, Any]) -> Markup:
    facts = [f"{how['images']:,} images", f"split “{how['split']}”", f"weights of step {how['step']:,}"]
    facts.append(f"decoding: {decode_settings(how['decode'])}")
    return tag(
        "header",
        tag("p", "Image captioning report", class_="kicker"),
        tag("h1", run),
        tag("p", " · ".join(facts), class_="facts"),
    )


def _headlines(assessment: Assessment) -> Markup:
    """The scores that people ask for first, large."""
    tiles = []
    for name in _HEADLINES:
        if name not in assessment.metrics:
            continue
        interval = assessment.intervals.get(name)
        span = interval and tag("span", f"{interval.low:.3f} – {interval.high:.3f}", class_="range")
        value = tag("span", f"{assessment.metrics[name]:.3f}", class_="value")
        tiles.append(
            tag(
                "div",
                tag("h2", name),
                value,
                tag("p", f"{_PERCENT}: ", span, class_="note") if span else "",
                class_="tile",
            )
        )
    return tag("div", *tiles, class_="tiles")


def _section(title: str, note: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), note and tag("p", note, class_="note"), *content)


def _score_table(assessment: Assessment) -> Markup:
    rows = []
    for name, value in assessment.metrics.items():
        interval = assessment.intervals.get(name)
        rows.append(_row(name, f"{value:.4f}", f"{interval.low:.4f} – {interval.high:.4f}" if interval else "–"))
    rows += [
        tag("tr", _name_cell(name), tag("td", f"absent: {reason}", colspan=2, class_="absent"))
        for name, reason in assessment.absent.items()
    ]
    heads = ("metric", "score", f"{_PERCENT} interval")
    return _with_heads(heads, rows)


def _diversity_table(assessment: Assessment) -> Markup:
    digits = {"vocabulary": 0, "mean_length": 2}
    rows = [_row(name, f"{value:,.{digits.get(name, 4)}f}") for name, value in assessment.diversity.items()]
    return _with_heads(("figure", "value"), rows)


def _with_heads(heads: Sequence[str], rows: Sequence[Markup]) -> Markup:
    first = tag(
        "tr", *(tag("th", head, scope="col", class_=None if i == 0 else "number") for i, head in enumerate(heads))
    )
    return tag("table", tag("thead", first), tag("tbody", *rows))


def _row(name: str, *values: str) -> Markup:
    return tag("tr", _name_cell(name), *(tag("td", value, class_="number") for value in values))


def _name_cell(name: str) -> Markup:
    meaning = _MEANINGS.get(name) or _meaning_of_retrieval(name)
    return tag("th", name.replace("_", " "), meaning and tag("small", meaning), scope="row")


def _meaning_of_retrieval(name: str) -> str:
    """What the names of `retrieval_scores` say."""
    way, at, count = name.partition("_R@")
    if at:
        return f"share of the {way.partition('_')[0]}s that find one of theirs among the first {count}"
    return "place of the first that is right (1 is best)" if name.endswith("_median_rank") else ""


def _cards(examples: Sequence[Example]) -> Markup:
    return tag("div", *map(_card, examples), class_="cards")


def _card(example: Example) -> Markup:
    scores = [tag("span", name, " ", tag("b", f"{example.scores[name]:.2f}")) for name in _OF_AN_IMAGE]
    return tag(
        "article",
        _image(example.picture, example.references[0]),
        tag("h3", example.caption or "(empty)"),
        tag("p", *scores, class_="scores"),
        tag("p", "References", class_="label"),
        tag("ul", *(tag("li", reference) for reference in example.references)),
        tag("p", f"image {example.image_id}", class_="id"),
        class_="card",
    )


def _looked(examples: Mapping[str, Sequence[Example]]) -> Markup | str:
    """Word by word, where the decoder looked; each image once."""
    found = {example.image_id: example for group in examples.values() for example in group if example.attention}
    if not found:
        return ""
    strips = []
    for example in found.values():
        panels = [
            tag("figure", _image(picture, f"Lit up where the model looked for “{word}”"), tag("figcaption", word))
            for word, picture in example.attention
        ]
        panels.insert(
            0, tag("figure", _image(example.picture, example.references[0]), tag("figcaption", "(the image)"))
        )
        strips.append(tag("div", tag("h3", example.caption), tag("div", *panels, class_="strip"), class_="card"))
    return _section("Where the model looked", _LOOKED_NOTE, *strips)


def _image(picture: Picture, alt: str) -> Markup:
    data = base64.b64encode(picture.jpeg).decode()
    size = {"width": picture.width, "height": picture.height}
    return tag("img", src=f"data:image/jpeg;base64,{data}", alt=alt, **size)


def _unreadable(assessment: Assessment) -> Markup | str:
    found = assessment.evaluation.unreadable
    if not found:
        return ""
    rows = [tag("li", tag("b", image_id), f": {reason}") for image_id, reason in found.items()]
    note = f"{len(found)} images, counted as empty captions."
    return _section("Images that could not be read", note, tag("ul", *rows))


def _protocol(how: Mapping[str, Any]) -> Markup:
    shown = {
        "split": how["split"],
        "images": f"{how['images']:,}, {how['unreadable_images']:,} of them unreadable",
        **({"context": f"texts beside an image: {how['context']}"} if "context" in how else {}),
        "weights": f"best of the run, step {how['step']:,}",
        "decoding": decode_settings(how["decode"]),
        "tokenization": how["tokenization"],
        "metrics": how["metrics"],
        "document frequencies": how["document_frequencies"],
        "intervals": how["intervals"],
        "device": how["device"],
        "wall time": f"{how['wall_seconds']:,.1f} s to read, caption and score the images",
        "versions": ", ".join(f"{name} {version}" for name, version in how["versions"].items()),
    }
    pairs = [join((tag("dt", name), tag("dd", value))) for name, value in shown.items()]
    return tag("dl", *pairs, class_="card")

"""The HTML report: one self-contained file, with captions escaped."""

from __future__ import annotations

import base64
import html.parser
import io
import math
import re
import sys
from collections.abc import Sequence

import jinja2
import numpy as np
import pytest
from browser import NAMES, Tab, find_browser
from PIL import Image
from small_assessment import CAPTIONS, REFERENCES, assessed

from caption_jax.evaluation.assessment import Assessment
from caption_jax.evaluation.evaluator import FinalEvaluation
from caption_jax.evaluation.report.html import write_report
from caption_jax.evaluation.report.html.examples import Example, JpegImage, select_images
from caption_jax.evaluation.report.html.page import render
from caption_jax.evaluation.report.html_report import HtmlReport
from caption_jax.metrics import score_images
from caption_jax.telemetry.metrics_file import Row

DANGEROUS = "<script>alert('x')</script> \"quoted\" & <img src=https://example.org/a.png> {{ 7 * 7 }}"
ROWS = [
    *(Row(step, "train", {"loss": math.nan if step == 50 else 100 / step}) for step in range(10, 101, 10)),
    *(Row(step, "val", {"loss": 50 / step, "CIDEr-D": step / 100}) for step in (50, 100)),
]


def example(assessment: Assessment, image_id: str) -> Example:
    image = JpegImage.encode(np.full((30, 40, 3), 99, np.uint8))
    row = list(assessment.references).index(image_id)
    scores = {name: float(values[row]) for name, values in assessment.images.values.items()}
    caption, references = assessment.evaluation.captions[image_id], assessment.references[image_id]
    return Example(image_id, image, caption, references, scores, [("dog", image), ("runs", image)])


def page_of(assessment: Assessment, rows: Sequence[Row] = ROWS, run_name: str = "boxes") -> str:
    examples = [example(assessment, image_id) for image_id in list(assessment.references)[:2]]
    return render(run_name, assessment, {"best": examples[:1], "worst": examples[1:], "random": examples}, rows)


class Page(html.parser.HTMLParser):
    """Elements and text of a page. Raises an error for elements that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, name: str, attributes: list) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in ("meta", "img"):
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for element, attributes in self.elements if element == name]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def check_self_contained(text: str) -> Page:
    """Asserts that the report is valid and needs no other files. Returns its parsed page."""
    page = Page(text)
    for name, attributes in page.elements:
        assert name not in ("script", "link", "iframe", "object", "embed", "form", "base"), name
        loaded = [
            attributes[key] for key in ("src", "srcset", "href", "xlink:href", "data", "poster") if key in attributes
        ]
        assert all(value.startswith("data:") for value in loaded)
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert "url(" not in style and "@import" not in style
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    for element in page.all("img"):
        kind, _, data = element["src"].partition(",")
        assert kind == "data:image/jpeg;base64" and element["alt"]
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            assert image.size == (int(element["width"]), int(element["height"]))
            image.load()
    return page


def test_the_page_has_scores_captions_protocol_and_images():
    assessment = assessed()
    page = check_self_contained(page_of(assessment))
    assert len(page.all("img")) == 4 + 2 * (1 + 2)  # cards, then each image and its attended words
    for expected in (
        "a dog runs on the grass",
        "a pair of cats on a mat",
        "beam alpha=0.0 length_penalty=power max_length=40 num_beams=3",
        "1,200",
        "PTB",
        "jax",
    ):
        assert expected in page.text, expected
    interval = assessment.intervals["CIDEr-D"]
    assert f"{interval.low:.4f} – {interval.high:.4f}" in page.text
    assert "absent: computed in evaluate mode only" in page.text
    assert "3.png : the file is empty" in page.text
    assert f"{assessment.diversity['novel']:.4f}" in page.text
    assert len(page.all("svg")) == 2


def test_the_protocol_mentions_the_context():
    assessment = assessed()
    assert "context captions" not in Page(page_of(assessment)).text
    assessment.protocol["context"] = "retrieved"
    assert "context captions: retrieved" in Page(page_of(assessment)).text


def test_text_is_escaped():
    captions = {**CAPTIONS, "1.png": DANGEROUS}
    references = {**REFERENCES, "1.png": [DANGEROUS, "half a pair \ud83d"]}
    text = page_of(assessed(captions, references))
    page = check_self_contained(text)
    assert page.texts.count(DANGEROUS) == 2 + 2 + 1  # captions and references of two cards, heading of the words
    assert page.all("img")[0]["alt"] == DANGEROUS
    text.encode("utf-8")


def test_best_and_worst_do_not_overlap_and_random_examples_are_reproducible():
    references = {i: [f"a {'very ' * i}long caption number {i}"] for i in range(40)}
    captions = {i: texts[0] if i % 3 else "a caption" for i, texts in references.items()}
    scores = score_images(references, captions)
    readable = set(range(1, 40))
    groups = select_images(scores, readable)
    assert {name: len(ids) for name, ids in groups.items()} == {"best": 8, "worst": 8, "random": 8}
    assert not set(groups["best"]) & set(groups["worst"]) and 0 not in {*groups["worst"], *groups["random"]}
    cider = dict(zip(scores.image_ids, scores.values["CIDEr-D"], strict=True))
    others = [cider[i] for i in readable - set(groups["best"]) - set(groups["worst"])]
    assert min(cider[i] for i in groups["best"]) >= max(others)
    assert max(cider[i] for i in groups["worst"]) <= min(others)
    assert cider[groups["best"][0]] == max(cider.values())
    assert groups == select_images(scores, readable) and len(set(groups["random"])) == 8
    assert select_images(scores, {3, 4})["best"] != select_images(scores, {3, 4})["worst"]
    assert select_images(scores, set()) == {"best": [], "worst": [], "random": []}


def test_charts_have_a_description_and_stay_inside_their_frame():
    page = Page(page_of(assessed(), ROWS))
    descriptions = [svg["aria-label"] for svg in page.all("svg")]
    assert "train 1.000 at step 100, val 0.500 at step 100" in descriptions[0]
    assert "best val CIDEr-D 1.000 at step 100" in descriptions[1]
    width, height = map(float, page.all("svg")[0]["viewbox"].split()[2:])
    for line in page.all("polyline"):
        points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
        assert len(points) >= 2 and all(0 <= x <= width and 0 <= y <= height for x, y in points)
    # A rising score is drawn upwards, where y is smaller.
    score = page.all("polyline")[-1]["points"].split()
    assert float(score[0].split(",")[1]) > float(score[-1].split(",")[1])


def test_long_runs_make_small_pages_and_empty_runs_no_chart():
    rows = [Row(step, "train", {"loss": 5 + math.sin(step)}) for step in range(1, 20_001)]
    without_charts = page_of(assessed(), [])
    assert "<svg" not in without_charts and "Training" not in without_charts
    assert len(page_of(assessed(), rows)) - len(without_charts) < 40_000
    single_step = [Row(1, "train", {"loss": 2.0}), Row(1, "val", {"CIDEr-D": 0.0})]
    assert page_of(assessed(), single_step).count("<svg") == 2


def test_names_of_the_run_and_of_splits_are_escaped():
    rows = [Row(step, DANGEROUS, {"loss": 2.0 / step, "CIDEr-D": 0.5}) for step in (1, 2)]
    assessment = assessed()
    assessment.protocol["context"] = DANGEROUS
    assessment.evaluation.unreadable[DANGEROUS] = DANGEROUS
    page = check_self_contained(page_of(assessment, rows, run_name=DANGEROUS))
    assert page.texts.count(DANGEROUS) == 1 + 1 + 2  # heading, image id, and a legend in each chart
    assert all(DANGEROUS in svg["aria-label"] for svg in page.all("svg"))
    assert f"context captions: {DANGEROUS}" in page.text and f": {DANGEROUS}" in page.texts


def test_a_protocol_with_missing_fields_is_an_error():
    assessment = assessed()
    del assessment.protocol["tokenization"]
    with pytest.raises(jinja2.UndefinedError, match="tokenization"):
        page_of(assessment)


def test_a_failed_report_keeps_the_previous_file(tmp_path):
    path = tmp_path / "report_val.html"
    write_report(path, "boxes", assessed(), {"best": [], "worst": [], "random": []}, ROWS)
    before = path.read_text(encoding="utf-8")
    check_self_contained(before)
    broken = assessed()
    del broken.protocol["device"]
    with pytest.raises(jinja2.UndefinedError):
        write_report(path, "boxes", broken, {"best": [], "worst": [], "random": []}, ROWS)
    assert path.read_text(encoding="utf-8") == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.browser
def test_a_browser_shows_the_file_without_requests_or_messages(tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip(f"needs a Chromium ({', '.join(NAMES)} on the path)")
    path, control = tmp_path / "report_val.html", tmp_path / "control.html"
    hardly_learning = [Row(step, "train", {"loss": 6.782 - step / 1e5}) for step in range(0, 800, 100)]
    path.write_text(page_of(assessed(), hardly_learning))
    control.write_text("<img src='https://localhost:9443/a.png' alt=''><script>console.error('woe')</script>")
    with Tab(program, tmp_path / "profile") as tab:
        tab.open(control.as_uri())
        assert tab.requests == ["https://localhost:9443/a.png"] and "woe" in tab.messages  # both are recorded
        tab.requests.clear()
        tab.messages.clear()
        tab.open(path.as_uri())
        for width, scheme in ((1280, "light"), (390, "dark")):
            tab.screenshot(tmp_path / f"{scheme}.png", width, 900, scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing overflows
            # Labels of charts would be clipped.
            cut = "[...document.querySelectorAll('svg text')].filter(t => t.getBBox().x < 0).map(t => t.textContent)"
            assert tab.evaluate(cut) == []
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert tab.evaluate("document.images.length") == 10
        assert (tab.requests, tab.messages) == ([], [])
    backgrounds = [
        Image.open(tmp_path / f"{scheme}.png").convert("RGB").getpixel((2, 2)) for scheme in ("light", "dark")
    ]
    assert min(backgrounds[0]) > 200 and max(backgrounds[1]) < 60


def test_missing_packages_are_a_warning_with_the_command(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "jinja2", None)  # simulates a missing package
    HtmlReport().write(FinalEvaluation(None, "val", None, None, None, None, []))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "report_val.html needs packages that are not installed (jinja2): pip install 'caption-jax[train]'"
    )

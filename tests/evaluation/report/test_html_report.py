"""The HTML report is one self-contained file with escaped captions."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import itertools
import math
import re
import sys
import types
from collections.abc import Sequence

import jinja2
import numpy as np
import pytest
from browser import NAMES, Tab, find_browser
from PIL import Image
from small_evaluation import CAPTIONS, REFERENCES, make_scored_evaluation

from caption_jax.evaluation.evaluator import FinalEvaluation
from caption_jax.evaluation.report.html import write_report
from caption_jax.evaluation.report.html.examples import Example, JpegImage, load_thumbnails, select_images
from caption_jax.evaluation.report.html.page import render
from caption_jax.evaluation.report.html.run_facts import RunFacts
from caption_jax.evaluation.report.html_report import HtmlReport
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
from caption_jax.metrics import ImageScores, score_images
from caption_jax.telemetry.metrics_file import Row
from input_pipeline.images import Preprocessing
from input_pipeline.records import Record

DANGEROUS = "<script>alert('x')</script> \"quoted\" & <img src=https://example.org/a.png> {{ 7 * 7 }}"
ROWS = [
    *(Row(step, "train", {"loss": math.nan if step == 50 else 100 / step}) for step in range(10, 101, 10)),
    *(Row(step, "val", {"loss": 50 / step, "CIDEr-D": step / 100}) for step in (50, 100)),
]


def make_example(scored_evaluation: ScoredEvaluation, image_id: str) -> Example:
    image = JpegImage.encode(np.full((30, 40, 3), 99, np.uint8))
    row = list(scored_evaluation.references).index(image_id)
    scores = {name: float(values[row]) for name, values in scored_evaluation.images.values.items()}
    caption, references = scored_evaluation.evaluation.captions[image_id], scored_evaluation.references[image_id]
    return Example(image_id, image, caption, references, scores, [("dog", image), ("runs", image)])


FACTS = RunFacts(
    name="boxes",
    date="27 November 2026, 21:47 UTC",
    data="folder photographs (captions: captions.csv)",
    training_images="1,500 images with 7,500 captions",
    trained="26 November 2026, 08:00 UTC to 26 November 2026, 09:30 UTC",
    end="Early stopping at step 1,600 of 2,000: CIDEr-D had not improved for 3 evaluations.",
    command="python main.py --config=configs/folder.py --workdir=runs/boxes",
)


def render_page(scored_evaluation: ScoredEvaluation, rows: Sequence[Row] = ROWS, facts: RunFacts = FACTS) -> str:
    examples = [make_example(scored_evaluation, image_id) for image_id in list(scored_evaluation.references)[:2]]
    return render(facts, scored_evaluation, {"best": examples[:1], "worst": examples[1:], "random": examples}, rows)


class Page(html.parser.HTMLParser):
    """Parses the elements and text of a page. Raises AssertionError if elements are not nested correctly."""

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

    def find_all(self, name: str) -> list[dict[str, str]]:
        return [attributes for element, attributes in self.elements if element == name]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def assert_self_contained(text: str) -> Page:
    """Asserts that the report is valid and references no other files. Returns the parsed page."""
    page = Page(text)
    for name, attributes in page.elements:
        assert name not in ("script", "link", "iframe", "object", "embed", "form", "base"), name
        urls = [
            attributes[key] for key in ("src", "srcset", "href", "xlink:href", "data", "poster") if key in attributes
        ]
        assert all(url.startswith(("data:", "#")) for url in urls)
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert "url(" not in style and "@import" not in style
    assert page.find_all("html")[0]["lang"] == "en" and len(page.find_all("h1")) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and {link["href"] for link in page.find_all("a")} <= {f"#{name}" for name in ids}
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for element in page.find_all("img"):
        media_type, _, data = element["src"].partition(",")
        assert media_type == "data:image/jpeg;base64" and element["alt"]
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            assert image.size == (int(element["width"]), int(element["height"]))
            image.load()
    return page


def test_the_page_contains_scores_captions_protocol_and_images():
    scored_evaluation = make_scored_evaluation()
    page = assert_self_contained(render_page(scored_evaluation))
    assert len(page.find_all("img")) == 4 + 2 * (1 + 2)  # cards, then each image with an overlay per word
    for expected in (
        "a dog runs on the grass",
        "a pair of cats on a mat",
        "beam alpha=0.0 length_penalty=power max_length=40 num_beams=3",
        "1,200",
        "PTB",
        "jax",
    ):
        assert expected in page.text, expected
    interval = scored_evaluation.intervals["CIDEr-D"]
    assert f"{interval.low:.4f} – {interval.high:.4f}" in page.text
    assert "absent: computed in evaluate mode only" in page.text
    assert "3.png : the file is empty" in page.text
    assert f"{scored_evaluation.diversity['novel']:.4f}" in page.text
    assert len(page.find_all("svg")) == 2


def test_the_protocol_mentions_the_context():
    scored_evaluation = make_scored_evaluation()
    assert "context captions" not in Page(render_page(scored_evaluation)).text
    scored_evaluation.protocol["context"] = "retrieved"
    assert "context captions: retrieved" in Page(render_page(scored_evaluation)).text


def test_text_is_escaped():
    captions = {**CAPTIONS, "1.png": DANGEROUS}
    references = {**REFERENCES, "1.png": [DANGEROUS, "unpaired surrogate \ud83d"]}
    text = render_page(make_scored_evaluation(captions, references))
    page = assert_self_contained(text)
    assert page.texts.count(DANGEROUS) == 2 + 2 + 1  # captions and references on two cards, and a heading
    text.encode("utf-8")


def make_scores(count: int) -> ImageScores:
    """Returns scores of images 0, 1, ... Those whose number is not a multiple of 3 have perfect captions."""
    references = {i: [f"a {'very ' * i}long caption number {i}"] for i in range(count)}
    return score_images(references, {i: texts[0] if i % 3 else "a caption" for i, texts in references.items()})


def test_best_and_worst_images_are_extreme_and_random_images_are_reproducible():
    scores, readable = make_scores(40), set(range(1, 40))
    groups = select_images(scores, readable)
    assert {name: len(ids) for name, ids in groups.items()} == {"best": 8, "worst": 8, "random": 8}
    assert 0 not in {*groups["worst"], *groups["random"]}  # unreadable
    cider = dict(zip(scores.image_ids, scores.values["CIDEr-D"], strict=True))
    others = [cider[i] for i in readable - set(groups["best"]) - set(groups["worst"])]
    assert min(cider[i] for i in groups["best"]) >= max(others)
    assert max(cider[i] for i in groups["worst"]) <= min(others)
    assert cider[groups["best"][0]] == max(cider.values())
    assert groups == select_images(scores, readable)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (7, (2, 2, 3)), (24, (8, 8, 8)), (30, (8, 8, 8))],
)
def test_no_image_is_in_two_groups(count, sizes):
    groups = select_images(make_scores(max(count, 1)), set(range(count)))
    assert tuple(len(groups[name]) for name in ("best", "worst", "random")) == sizes
    assert len({*groups["best"], *groups["worst"], *groups["random"]}) == sum(sizes)


def test_the_page_states_when_on_which_data_and_how_the_run_was_trained():
    page = assert_self_contained(render_page(make_scored_evaluation()))
    for value in dataclasses.asdict(FACTS).values():
        assert value in page.text
    evaluated = dataclasses.replace(FACTS, command="", report_command="caption-jax evaluate --workdir=runs/boxes")
    text = Page(render_page(make_scored_evaluation(), facts=evaluated)).text
    assert "caption-jax evaluate --workdir=runs/boxes" in text and "not recorded" in text


def test_scores_are_also_shown_as_papers_print_them():
    scored_evaluation = make_scored_evaluation()
    scored_evaluation.evaluation.metrics["CIDEr-D"] = 0.308
    page = Page(render_page(scored_evaluation))
    assert "in papers 30.8" in page.texts and "30.8" in page.texts
    assert "2.5000" in page.texts and "250.0" not in page.texts  # a loss is not a score


def test_empty_captions_and_missing_references_are_shown_as_such():
    scored_evaluation = make_scored_evaluation()
    example = make_example(scored_evaluation, "2.png")
    for caption in ("", " "):
        empty = dataclasses.replace(example, caption=caption, references=[])
        page = Page(render(FACTS, scored_evaluation, {"best": [empty], "worst": [], "random": []}, ROWS))
        assert page.texts.count("(empty)") == 2  # on the card and above the attention maps
        assert "No references" in page.texts


def test_charts_have_descriptions_and_points_within_the_frame():
    page = Page(render_page(make_scored_evaluation(), ROWS))
    descriptions = [svg["aria-label"] for svg in page.find_all("svg")]
    assert "train 1.000 at step 100, val 0.500 at step 100" in descriptions[0]
    assert "best val CIDEr-D 1.000 at step 100" in descriptions[1]
    width, height = map(float, page.find_all("svg")[0]["viewbox"].split()[2:])
    for line in page.find_all("polyline"):
        points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
        assert len(points) >= 2 and all(0 <= x <= width and 0 <= y <= height for x, y in points)
    # The score increases, so y decreases.
    score = page.find_all("polyline")[-1]["points"].split()
    assert float(score[0].split(",")[1]) > float(score[-1].split(",")[1])


def test_long_runs_have_small_charts_and_empty_runs_have_none():
    rows = [Row(step, "train", {"loss": 5 + math.sin(step)}) for step in range(1, 20_001)]
    without_charts = render_page(make_scored_evaluation(), [])
    assert "<svg" not in without_charts and "Training" not in without_charts
    assert len(render_page(make_scored_evaluation(), rows)) - len(without_charts) < 40_000
    single_step = [Row(1, "train", {"loss": 2.0}), Row(1, "val", {"CIDEr-D": 0.0})]
    assert render_page(make_scored_evaluation(), single_step).count("<svg") == 2


def test_run_and_split_names_are_escaped():
    rows = [Row(step, DANGEROUS, {"loss": 2.0 / step, "CIDEr-D": 0.5}) for step in (1, 2)]
    scored_evaluation = make_scored_evaluation()
    scored_evaluation.protocol["context"] = DANGEROUS
    scored_evaluation.evaluation.unreadable[DANGEROUS] = DANGEROUS
    page = assert_self_contained(
        render_page(scored_evaluation, rows, facts=dataclasses.replace(FACTS, name=DANGEROUS, command=DANGEROUS))
    )
    assert page.texts.count(DANGEROUS) == 1 + 1 + 1 + 2  # heading, command, image id, and a legend in each chart
    assert all(DANGEROUS in svg["aria-label"] for svg in page.find_all("svg"))
    assert f"context captions: {DANGEROUS}" in page.text and f": {DANGEROUS}" in page.texts


def test_a_protocol_with_missing_fields_is_rejected():
    scored_evaluation = make_scored_evaluation()
    del scored_evaluation.protocol["tokenization"]
    with pytest.raises(jinja2.UndefinedError, match="tokenization"):
        render_page(scored_evaluation)


def test_a_failed_report_does_not_change_the_previous_file(tmp_path):
    path = tmp_path / "report_val.html"
    write_report(path, FACTS, make_scored_evaluation(), {"best": [], "worst": [], "random": []}, ROWS)
    before = path.read_text(encoding="utf-8")
    assert_self_contained(before)
    incomplete = make_scored_evaluation()
    del incomplete.protocol["device"]
    with pytest.raises(jinja2.UndefinedError):
        write_report(path, FACTS, incomplete, {"best": [], "worst": [], "random": []}, ROWS)
    assert path.read_text(encoding="utf-8") == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.browser
def test_a_browser_displays_the_report_without_requests_or_messages(tmp_path):
    executable = find_browser()
    if executable is None:
        pytest.skip(f"needs a Chromium ({', '.join(NAMES)} on the path)")
    path, control_path = tmp_path / "report_val.html", tmp_path / "control.html"
    flat_loss = [Row(step, "train", {"loss": 6.782 - step / 1e5}) for step in range(0, 800, 100)]
    path.write_text(render_page(make_scored_evaluation(), flat_loss))
    control_path.write_text("<img src='https://localhost:9443/a.png' alt=''><script>console.error('oops')</script>")
    with Tab(executable, tmp_path / "profile") as tab:
        tab.open(control_path.as_uri())
        assert tab.requests == ["https://localhost:9443/a.png"] and "oops" in tab.messages
        tab.requests.clear()
        tab.messages.clear()
        tab.open(path.as_uri())
        for width, height, scheme in ((1400, 900, "light"), (390, 844, "dark")):
            tab.screenshot(tmp_path / f"{scheme}.png", width, height, scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing overflows
            assert tab.evaluate("document.images[0].getBoundingClientRect().bottom") <= height
            # Chart labels with negative x would be clipped.
            labels = "[...document.querySelectorAll('svg text')].filter(t => t.getBBox().x < 0).map(t => t.textContent)"
            assert tab.evaluate(labels) == []
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert tab.evaluate("document.images.length") == 10
        assert (tab.requests, tab.messages) == ([], [])
    backgrounds = [
        Image.open(tmp_path / f"{scheme}.png").convert("RGB").getpixel((2, 2)) for scheme in ("light", "dark")
    ]
    assert min(backgrounds[0]) > 200 and max(backgrounds[1]) < 60


def test_a_missing_package_is_logged_with_the_install_command(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "jinja2", None)  # simulates a missing package
    HtmlReport().write(FinalEvaluation(None, "val", None, None, None, None, []))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "report_val.html needs packages that are not installed (jinja2): "
        "pip install 'caption-jax[train]', or '.[train]' in a checkout"
    )


def test_images_that_can_no_longer_be_read_are_omitted_with_a_warning(tmp_path, caplog):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    records = [Record(tmp_path / f"{name}.png", ("a",), name) for name in ("a", "deleted")]
    description = types.SimpleNamespace(preprocessing=Preprocessing(8))
    assert list(load_thumbnails(description, records)) == ["a"]
    assert "the report omits an image that can no longer be read: " in caplog.text and "deleted.png" in caplog.text

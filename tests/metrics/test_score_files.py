"""`python -m caption_jax.metrics` with files as people have them: formats, ids, subsets, languages, and its errors."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

import pytest

from caption_jax.metrics.__main__ import main

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases, not part of this repository")

CAPTIONS = {"a.jpg": "a dog runs", "b.jpg": "a cat sleeps"}
COCO = {
    "images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}, {"id": 22, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 391895, "caption": "a dog runs"}, {"image_id": 22, "caption": "a cat sleeps"}],
}
# The captions above in different forms.
FORMS = {
    "results.json": json.dumps([{"image_id": name, "caption": caption} for name, caption in CAPTIONS.items()]),
    "by_name.json": json.dumps(CAPTIONS),
    "lists_by_name.json": json.dumps({name: [caption] for name, caption in CAPTIONS.items()}),
    "lines.jsonl": "".join(json.dumps({"image": name, "captions": [text]}) + "\n" for name, text in CAPTIONS.items()),
    "captioned.jsonl": "".join(
        json.dumps({"path": f"/photos/{name}", "caption": text, "log_prob": -1.5, "tokens": text.split()}) + "\n"
        for name, text in CAPTIONS.items()
    ),
    "lines_in_a_csv_file.csv": '{"image_id": "a.jpg", "caption": "a dog runs"}\n{"image_id": "b.jpg", "caption": '
    '"a cat sleeps"}\n',
    "capitals.csv": "Image,Caption\na.jpg,a dog runs\nb.jpg,a cat sleeps\n",
    "windows.csv": "\ufeffimage;caption\r\na.jpg;a dog runs\r\nb.jpg;a cat sleeps\r\n",
    "tabs.tsv": "image\tcaption\na.jpg\ta dog runs\nb.jpg\ta cat sleeps\n",
    "pipes.csv": "image_name| comment\na.jpg| a dog runs\nb.jpg| a cat sleeps\n",
    "hub.csv": "file_name,text\na.jpg,a dog runs\nb.jpg,a cat sleeps\n",
    "token.txt": "a.jpg#0\ta dog runs\nb.jpg#0\ta cat sleeps\n",
}
ERRORS = {
    "empty.csv": ("image,caption\na.jpg,a dog runs\na.jpg,\nb.jpg,a cat\n", "empty reference captions.*'a.jpg'"),
    "zero.json": ("", "zero.json is empty"),
    "blank.csv": (" \n\n", "blank.csv is empty"),
    "none.json": ("[]", "none.json: contains no captions"),
    "header.csv": ("image,caption\n", "header.csv: contains no captions"),
    "truncated.json": ('[{"image_id": "a.jpg", "capt', "truncated.json, line 1: not valid JSON"),
    "numbers.json": ('[{"image_id": "a.jpg", "caption": 3}]', "numbers.json, record 1: caption is 3"),
    "columns.csv": (
        "file,words in it\na.jpg,a dog\n",
        "columns.csv: no column.*words in it.*Rename them to image and caption",
    ),
    "prose.txt": ("These are some captions of mine.\nA dog.\n", "unknown format of .*prose.txt"),
}


def run(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    """Returns the exit status, standard output and standard error."""
    status = main([*map(str, arguments), "--no-java", "--samples=5"])
    output = capsys.readouterr()
    return status, output.out, output.err


def read_scores(capsys, tmp_path: Path, *arguments: str | Path) -> dict:
    """Scores files and returns the JSON report."""
    status, _, errors = run(capsys, *arguments, f"--json={tmp_path / 'report.json'}")
    assert status == 0, errors
    return json.loads((tmp_path / "report.json").read_text())


def write(folder: Path, name: str, content: str | bytes | list | dict) -> Path:
    if isinstance(content, list | dict):
        content = json.dumps(content)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.fixture
def references(tmp_path) -> Path:
    return write(tmp_path, "references.csv", "image,caption\na.jpg,a dog runs\nb.jpg,a cat sleeps\n")


@pytest.mark.parametrize("name", FORMS)
def test_results_and_references_are_read_in_every_form(name, references, tmp_path, capsys):
    form, results = write(tmp_path, name, FORMS[name]), write(tmp_path, "plain.json", FORMS["results.json"])
    for arguments in ((form, references), (results, form)):
        report = read_scores(capsys, tmp_path, *arguments)
        assert report["images"] == 2 and report["results"][0]["metrics"]["exact_match"]["value"] == 1
        assert bool(report["notes"]) == (name == "captioned.jsonl")


def test_utf_16_files_are_read(references, tmp_path, capsys):
    form = write(tmp_path, "excel.txt", codecs.BOM_UTF16_LE + FORMS["tabs.tsv"].encode("utf-16-le"))
    assert read_scores(capsys, tmp_path, form, references)["images"] == 2


@pytest.mark.parametrize("name", ERRORS)
def test_unusable_files_give_one_line_that_names_the_file(name, references, tmp_path, capsys):
    content, message = ERRORS[name]
    path = write(tmp_path, name, content)
    status, output, errors = run(capsys, references, path)
    assert status == 1 and output == "" and errors.count("\n") == 1, errors
    assert re.search(message, errors), errors


def test_text_in_other_encodings_gives_one_line(references, tmp_path, capsys):
    path = write(tmp_path, "latin.csv", "image,caption\na.jpg,a dog\nb.jpg,a café\n".encode("latin-1"))
    for arguments in ((path, references), (references, path)):
        status, _, errors = run(capsys, *arguments)
        assert status == 1 and errors.count("\n") == 1 and "latin.csv is not UTF-8" in errors


def test_images_that_could_not_be_captioned_are_missing_rather_than_malformed(references, tmp_path, capsys):
    failed = json.dumps({"path": "/photos/b.jpg", "error": "/photos/b.jpg: the file is empty"})
    path = write(tmp_path, "captioned.jsonl", FORMS["captioned.jsonl"].split("\n")[0] + "\n" + failed + "\n")
    status, _, errors = run(capsys, path, references)
    assert status == 1 and "1 without a result: 'b.jpg'" in errors and "--subset=common" in errors
    assert read_scores(capsys, tmp_path, path, references, "--subset=common")["images"] == 1
    status, _, errors = run(capsys, write(tmp_path, "failed.jsonl", failed), references)
    assert status == 1 and "failed.jsonl: contains no captions" in errors


def test_ids_of_other_types_are_matched_with_a_note(tmp_path, capsys):
    annotations = write(tmp_path, "coco.json", COCO)
    rows = [{"image_id": "391895", "caption": "a dog runs"}, {"image_id": "22", "caption": "a cat sleeps"}]
    path = write(tmp_path, "text_ids.json", rows)
    status, output, _ = run(capsys, path, annotations)
    (note,) = [line for line in output.splitlines() if line.startswith("note: ")]
    assert status == 0 and "2 of 2 images matched by number: '391895' is image 391895" in note
    assert read_scores(capsys, tmp_path, path, annotations)["results"][0]["images"][0]["image_id"] == 391895


def test_two_systems_may_identify_images_in_different_ways(tmp_path, capsys):
    annotations = write(tmp_path, "coco.json", COCO)
    by_id = write(tmp_path, "ids.json", [{"image_id": i, "caption": "a dog runs"} for i in (391895, 22)])
    by_name = write(tmp_path, "names.json", {"COCO_val2014_000000391895": "a dog runs", "b": "a cat sleeps"})
    report = read_scores(capsys, tmp_path, by_id, annotations, by_name)
    first, second = report["results"]
    assert [row["image_id"] for row in first["images"]] == [row["image_id"] for row in second["images"]] == [391895, 22]
    assert report["comparison"]["exact_match"]["difference"] == 0.5


def test_unmatched_and_ambiguous_ids_are_refused_with_a_hint(references, tmp_path, capsys):
    for rows, message in (
        ({"x.jpg": "a dog", "y.jpg": "a cat"}, "no image matches the references"),
        ({"x/a.jpg": "a dog", "y/a.jpg": "a cat"}, "not one to one"),
    ):
        status, _, errors = run(capsys, write(tmp_path, "results.json", rows), references)
        assert status == 1 and message in errors and "write the ids or the" in errors and errors.count("\n") == 1


def test_a_part_of_the_images_is_scored_on_request_and_stated_in_the_protocol(references, tmp_path, capsys):
    part = write(tmp_path, "part.json", {"a.jpg": "a dog runs", "c.jpg": "a hat"})
    status, _, errors = run(capsys, part, references)
    assert status == 1 and errors.count("\n") == 1
    assert "have 2 images, the results 2: 1 without a result: 'b.jpg'; 1 without references: 'c.jpg'" in errors
    report = read_scores(capsys, tmp_path, part, references, "--subset=common")
    stated = "common: 1 of the 2 images with references; 1 without a result and 1 without references are excluded"
    assert report["protocol"]["scored_images"] == stated and report["images"] == 1
    assert f"scored_images: {stated}" in run(capsys, part, references, "--subset=common")[1]
    assert "scored_images" not in read_scores(capsys, tmp_path, references, references)["protocol"]


def test_the_images_common_to_two_systems_are_compared(references, tmp_path, capsys):
    first, second = (write(tmp_path, f"{name}.json", {f"{name}.jpg": "a dog", "b.jpg": "a cat"}) for name in "ac")
    report = read_scores(capsys, tmp_path, first, references, second, "--subset=common")
    assert report["images"] == 1 and len(report["results"][1]["images"]) == 1


def test_a_cider_of_zero_is_explained_in_one_line(tmp_path, capsys):
    single = write(tmp_path, "single.json", {"a.jpg": "a dog"})
    status, output, _ = run(capsys, single, single)
    (note,) = [line for line in output.splitlines() if line.startswith("note: ")]
    assert status == 0 and "CIDEr-D is always 0 for a single image" in note and "log(1/1) = 0" in note


def test_languages_without_spaces_are_scored_by_characters(tmp_path, capsys):
    references = write(tmp_path, "zh.json", {"a.jpg": ["一只狗在草地上跑"], "b.jpg": ["两只猫在沙发上睡觉"]})
    results = write(tmp_path, "results.json", {"a.jpg": "一只狗在跑", "b.jpg": "两只猫在睡觉"})
    status, output, errors = run(capsys, results, references)
    assert status == 0 and errors.startswith("warning: the PTB tokenizer") and errors.count("\n") == 1
    assert "--tokenizer=characters" in errors and "PTB" in output
    status, output, errors = run(capsys, results, references, "--tokenizer=characters")
    assert status == 0 and errors == "" and "tokenization: characters of CJK" in output
    report = read_scores(capsys, tmp_path, results, references, "--tokenizer=characters")
    assert report["results"][0]["metrics"]["BLEU-1"]["value"] > 0.5


@needs_cases
@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.jsonl", "Head.csv", "c.tsv", "hf.csv", "semi.csv", "token.txt", "res.json", "lines.json", "list.json"],
)
def test_every_form_of_the_cases_is_scored(name, tmp_path, capsys):
    folder = CASES / "eval_forms"
    for arguments in ((folder / "res.json", folder / name), (folder / name, folder / "a.csv")):
        assert read_scores(capsys, tmp_path, *arguments)["images"] == 2


@needs_cases
@pytest.mark.parametrize("name", ["dict.json", "capmode.jsonl", "noid.json"])
def test_forms_of_the_cases_with_one_image_are_refused_with_the_counts_and_scored_on_request(name, tmp_path, capsys):
    folder = CASES / "eval_forms"
    for arguments in ((folder / name, folder / "a.csv"), (folder / "res.json", folder / name)):
        status, _, errors = run(capsys, *arguments)
        assert status == 1 and errors.count("\n") == 1 and "--subset=common" in errors and "'b.jpg'" in errors
        assert read_scores(capsys, tmp_path, *arguments, "--subset=common")["images"] == 1


@needs_cases
@pytest.mark.parametrize("name", ["empty.csv", "zero.json", "none.json", "latin.csv"])
def test_unusable_files_of_the_cases_give_one_line(name, capsys):
    folder = CASES / "eval_forms"
    for arguments in ((folder / name, folder / "a.csv"), (folder / "res.json", folder / name)):
        status, output, errors = run(capsys, *arguments)
        assert status == 1 and output == "" and errors.count("\n") == 1 and name in errors


@needs_cases
def test_ids_and_parts_of_the_cases(tmp_path, capsys):
    ids, part, own = CASES / "eval_str_ids", CASES / "eval_subset", CASES / "score_own_captions"
    for name, how in (("res.json", "matched by number"), ("res_stem.json", "by file name without folder and suffix")):
        report = read_scores(capsys, tmp_path, ids / name, ids / "ann.json")
        assert report["results"][0]["metrics"]["exact_match"]["value"] == 1 and how in report["notes"][0]
    status, _, errors = run(capsys, part / "res.json", part / "ann.json")
    assert status == 1 and "have 2 images, the results 1: 1 without a result: 22" in errors
    report = read_scores(capsys, tmp_path, part / "res.json", part / "ann.json", "--subset=common")
    assert report["protocol"]["scored_images"].startswith("common: 1 of the 2 images")
    report = read_scores(capsys, tmp_path, own / "mine.jsonl", own / "captions.csv")
    assert "by file name without folder" in report["notes"][0] and "single image" in report["notes"][1]

"""Caption files as people have them: column names, delimiters, quotes, encodings, JSON types and lists of words."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from input_pipeline.annotations import read_rows
from input_pipeline.annotations.encodings import detect_encoding
from input_pipeline.annotations.fields import CAPTION_FIELDS, IMAGE_FIELDS
from input_pipeline.errors import DataError

EXPECTED = {"a.jpg": ["a red kite", "a kite"], "b.jpg": ["an old bridge"]}


def read(path: Path, content, **options) -> tuple[dict[str, list[str]], list[str]]:
    """Writes a file; returns its captions by image name, and the problems without the path of the file."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    problems: list[str] = []
    captions: dict[str, list[str]] = {}
    for row in read_rows(path, lambda kind, text: problems.append(text), **options):
        captions.setdefault(row.image, []).extend(caption.strip() for caption in row.captions)
    assert all(problem.startswith(f"{path}, ") for problem in problems)
    return captions, [problem.removeprefix(f"{path}, ") for problem in problems]


def make_table(delimiter: str, header: tuple[str, ...] = ("image", "caption")) -> str:
    rows = [header, *((name, text) for name, captions in EXPECTED.items() for text in captions)]
    return "\n".join(delimiter.join(row) for row in rows) + "\n"


# --- column names ---


@pytest.mark.parametrize(
    "header",
    [
        *((name, "caption") for name in IMAGE_FIELDS),
        *(("image", name) for name in CAPTION_FIELDS),
        *[(" Image Name ", "CAPTION"), ("fileName", "Alt-Text"), ('"FILEPATH"', '"title"')],
    ],
)
def test_columns_and_fields_have_many_names(tmp_path, header):
    assert read(tmp_path / "table.csv", make_table(",", header)) == (EXPECTED, [])
    image, caption = (name.strip('" ') for name in header)
    records = [{image: name, caption: text} for name, captions in EXPECTED.items() for text in captions]
    assert read(tmp_path / "list.json", records) == (EXPECTED, [])
    assert read(tmp_path / "lines.jsonl", "\n".join(map(json.dumps, records))) == (EXPECTED, [])


def test_the_config_names_other_columns_and_fields(tmp_path):
    options = {"image_column": "Photo", "caption_column": "what it shows"}
    table = "id;photo;caption;What it shows\n1;a.jpg;not this;a red kite\n"
    assert read(tmp_path / "a.csv", table, **options) == ({"a.jpg": ["a red kite"]}, [])
    record = {"Photo": "a.jpg", "caption": "not this", "what it shows": ["a red kite"]}
    assert read(tmp_path / "a.jsonl", record, **options) == ({"a.jpg": ["a red kite"]}, [])
    assert read(tmp_path / "a.json", [record, record], **options) == ({"a.jpg": ["a red kite"] * 2}, [])
    assert read(tmp_path / "a.csv", "图片,说明\na.jpg,风筝\n", image_column="图片", caption_column="说明") == (
        {"a.jpg": ["风筝"]},
        [],
    )


def test_the_message_for_unknown_columns_lists_them_and_the_config_keys(tmp_path):
    keys = "Name them with config.data.image_column and config.data.caption_column"
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.csv", "photo; words of it\na.jpg; a red kite\n")
    assert str(error.value).startswith(
        f"{tmp_path / 'a.csv'}: no column known to hold image names and none known to hold captions; the columns are "
        f"'photo', 'words of it'. {keys}"
    )
    with pytest.raises(DataError, match=r"no column named 'picture'; the columns are 'image', 'caption'\. Name"):
        read(tmp_path / "a.csv", make_table(","), image_column="picture")
    with pytest.raises(DataError, match="seems to have no header; add the line image,caption"):
        read(tmp_path / "a.csv", "a.jpg,a red kite\nb.jpg,an old bridge\n")
    captions, problems = read(tmp_path / "a.json", [{"photo": "a.jpg", "caption": "x"}, {"image": "b.jpg"}])
    assert not captions
    assert problems == [
        f"record 1: no field known to hold image names; the fields are 'photo', 'caption'. {keys}",
        f"record 2: no field known to hold captions; the fields are 'image'. {keys}",
    ]


def test_the_choice_between_two_caption_columns_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    content = "path,title,description\na.jpg,kite,A red kite.\n"
    assert read(tmp_path / "a.csv", content)[0] == {"a.jpg": ["A red kite."]}
    assert "captions are read from 'description', not from 'title'" in caplog.text
    assert "config.data.caption_column" in caplog.text


# --- delimiters, quotation marks and lines ---


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", ", ", " | ", "| ", " ; "])
def test_delimiters_are_detected(tmp_path, delimiter):
    assert read(tmp_path / "table.csv", make_table(delimiter)) == (EXPECTED, [])
    quoted = make_table(delimiter).replace("a red kite", f'"a ""red""{delimiter}kite"')
    assert read(tmp_path / "quoted.csv", quoted)[0]["a.jpg"][0] == f'a "red"{delimiter}kite'


@pytest.mark.parametrize("start", ["\n", "\r\n\r\n", "  \n", "sep=,\r\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_blank_lines_and_the_separator_line_of_excel_are_skipped(tmp_path, start, newline):
    table = make_table(",").replace("\n", newline) + f"{newline}a.jpg,x,y{newline},,{newline}"
    captions, problems = read(tmp_path / "table.csv", start + table)
    assert captions == EXPECTED
    line = 6 + start.count("\n")
    assert problems == [
        f'line {line}: expected 2 fields, got 3; put a caption that contains a comma in quotation marks ("...")'
    ]


@pytest.mark.parametrize(("delimiter", "name"), [(",", "comma"), ("\t", "tab"), (";", "semicolon"), ("|", "pipe")])
def test_unquoted_delimiters_are_reported_by_line(tmp_path, delimiter, name):
    content = f"image{delimiter}caption\na.jpg{delimiter}red{delimiter} kite\nb.jpg{delimiter}a bridge\n"
    captions, problems = read(tmp_path / "table.csv", content)
    assert captions == {"b.jpg": ["a bridge"]}
    assert problems == [
        f'line 2: expected 2 fields, got 3; put a caption that contains a {name} in quotation marks ("...")'
    ]


UNCLOSED = 'a quotation mark is not closed; write a quotation mark inside a caption twice ("")'


@pytest.mark.parametrize(
    "rows",
    [
        ['b.jpg,"a bridge', "c.jpg,a boat", "d.jpg,a dog"],  # up to the end of the file
        ['b.jpg,"a bridge', 'c.jpg,"a boat"', "d.jpg,a dog"],  # up to the next quotation mark, which is invalid there
        ['b.jpg,"a bridge', 'c.jpg,a boat"', "d.jpg,a dog"],  # closed in the next row, valid according to RFC 4180
    ],
)
def test_quotation_marks_that_are_not_closed_are_reported_and_swallow_no_rows(tmp_path, rows):
    content = "image,caption\na.jpg,a kite\n" + "\n".join(rows) + "\n"
    captions, problems = read(tmp_path / "a.csv", content)
    assert problems == [f"line 3: {UNCLOSED}"]
    assert list(captions) == ["a.jpg", "c.jpg", "d.jpg"] and captions["d.jpg"] == ["a dog"]


def test_other_invalid_quotation_marks(tmp_path):
    captions, problems = read(tmp_path / "a.csv", 'image,caption\na.jpg,"kite" in red\nb.jpg,a 6" pipe\n')
    assert captions == {"b.jpg": ['a 6" pipe']}
    assert problems == [
        'line 2: text before or after a quoted field; write quotation marks inside a caption twice ("")'
    ]
    # Files with tabs or pipes are rarely quoted: the caption is the rest of the line.
    captions, problems = read(tmp_path / "a.tsv", 'image\tcaption\na.jpg\t"kite" in red\nb.jpg\t"a\n')
    assert captions == {"a.jpg": ['"kite" in red']} and problems == [f"line 3: {UNCLOSED}"]


def test_captions_of_several_lines_are_read(tmp_path):
    content = 'image,caption\na.jpg,"A kite,\nred.\n\nHigh"\nb.jpg,x,y\n'
    captions, problems = read(tmp_path / "a.csv", content)
    assert captions == {"a.jpg": ["A kite,\nred.\n\nHigh"]} and problems[0].startswith("line 6: expected 2 fields")


def test_token_files_keep_captions_whole(tmp_path):
    content = "a.jpg#0\tA kite\x85 red\u2028high\r\nb.jpg\tno number\r\n"
    captions, problems = read(tmp_path / "token.txt", content)
    assert captions == {"a.jpg": ["A kite\x85 red\u2028high"]}
    assert problems == ["line 2: expected name.jpg#0<tab>caption, got 'b.jpg\\tno number'"]


# --- encodings ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "json", "token"])
def test_encodings_are_detected(tmp_path, encoding, kind):
    content = {
        "csv": "image,caption\na.jpg,ein größerer Drachen\n",
        "json": '{"a.jpg": "ein größerer Drachen"}',
        "token": "a.jpg#0\tein größerer Drachen",
    }[kind]
    assert read(tmp_path / "file", content.encode(encoding)) == ({"a.jpg": ["ein größerer Drachen"]}, [])


def test_text_with_few_zero_bytes_is_not_utf_16():
    assert detect_encoding(b"a\0bcdefghijklmnopqrst") == "utf-8"
    assert detect_encoding("图片,说明".encode()) == "utf-8"
    assert detect_encoding(b"") == "utf-8"


# --- JSON types ---

KITE = {"a.jpg": ["a red kite"]}
READABLE = {
    "by name": {"a.jpg": "a red kite"},
    "by name, objects": {"a.jpg": [{"image_id": 1, "caption": "a red kite"}]},
    "by name, one object": {"a.jpg": {"caption": "a red kite", "split": "train"}},
    "one record": {"image": "a.jpg", "caption": "a red kite"},
    "lists of objects": [{"image": "a.jpg", "captions": [{"text": "a red kite"}]}],
    "COCO, images by name": {"images": ["a.jpg"], "annotations": [{"image_id": "a.jpg", "caption": "a red kite"}]},
    "COCO, other key": {
        "images": [{"id": 1, "path": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a red kite"}],
    },
    "COCO, list": {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": ["a red kite"]}],
    },
    "Karpathy, plain sentences": {"images": [{"filename": "a.jpg", "sentences": ["a red kite"]}]},
    "Karpathy, one sentence": {"images": [{"file_name": "a.jpg", "sentences": "a red kite"}]},
    "Karpathy, captions": {"images": [{"file_name": "a.jpg", "captions": ["a red kite"]}]},
    "Karpathy, tokens beside raw": {
        "images": [{"filename": "a.jpg", "sentences": [{"tokens": ["a", "red"], "raw": "a red kite"}]}]
    },
}


@pytest.mark.parametrize("kind", READABLE)
def test_json_with_a_plain_meaning_is_read(tmp_path, kind, caplog):
    assert read(tmp_path / "a.json", READABLE[kind]) == (KITE, [])
    assert not caplog.messages


def test_numbers_are_names_without_their_extension(tmp_path):
    content = {"images": [{"id": 1, "file_name": 7}], "annotations": [{"image_id": 1, "caption": "a red kite"}]}
    assert read(tmp_path / "a.json", content) == ({"7": ["a red kite"]}, [])
    assert read(tmp_path / "a.json", [{"image": 7.0, "caption": "a red kite"}]) == ({"7": ["a red kite"]}, [])


def coco(image=None, annotation=None) -> dict:
    images = [{"id": 1, "file_name": "a.jpg", **(image or {})}]
    return {"images": images, "annotations": [{"image_id": 1, "caption": "a red kite", **(annotation or {})}]}


def karpathy(**changes) -> dict:
    return {"images": [{"filename": "a.jpg", "sentences": [{"raw": "a red kite"}], **changes}]}


UNREADABLE = [
    ([{"image": 3.5, "caption": "x"}], "record 1: image is 3.5 (a number); wanted a file name"),
    ([{"image": ["a.jpg"], "caption": "x"}], 'record 1: image is ["a.jpg"] (a list); wanted a file name'),
    ([{"image": None, "caption": "x"}], "record 1: image is missing; wanted a file name"),
    ([{"image": "a.jpg", "caption": 7}], "record 1: caption is 7 (a number); wanted text, or a list of texts"),
    ([{"image": "a.jpg", "captions": ["x", 7]}], 'record 1: captions is ["x", 7] (a list); wanted text, or a list'),
    ([{"image": "a.jpg", "caption": "x", "image_id": [7]}], "record 1: image_id is [7] (a list); wanted a number or"),
    ([{"image": "a.jpg", "caption": "x", "image_id": True}], "record 1: image_id is true (true or false); wanted"),
    (["a.jpg"], 'record 1: the record is "a.jpg" (text); wanted an object: {"image": "a.jpg", "caption": "..."}'),
    ({"a.jpg": 7, "b.jpg": "x"}, "record 1 ('a.jpg'): the value is 7 (a number); wanted text, or a list of texts"),
    (coco({"id": None}), "record 1 of images: id is missing; wanted a number or text"),
    (coco({"file_name": {"path": 1}}), 'record 1 of images: file_name is {"path": 1} (an object); wanted a file name'),
    (coco(annotation={"image_id": [1]}), "record 1 of annotations: image_id is [1] (a list); wanted a number or text"),
    (coco(annotation={"caption": None}), "record 1 of annotations: caption is missing; wanted text"),
    (coco(annotation={"image_id": 9}), "record 1 of annotations: image id 9, but the ids of the images are 1"),
    ({**coco(), "images": [["a.jpg"]]}, 'record 1 of images: the record is ["a.jpg"] (a list); wanted an object with'),
    ({**coco(), "annotations": [5]}, "record 1 of annotations: the record is 5 (a number); wanted an object"),
    ({**coco(), "images": ["a.jpg"]}, "record 1 of annotations: image id 1, but the images are plain names ('a.jpg')"),
    (karpathy(filename=False), "record 1 of images: filename is false (true or false); wanted a file name"),
    (karpathy(cocoid=[1]), "record 1 of images: cocoid is [1] (a list); wanted a number or text"),
    (karpathy(filepath=3), "record 1 of images: filepath is 3 (a number); wanted a folder name"),
    (karpathy(sentences=[3]), "record 1 of images: sentences is [3] (a list); wanted a list of objects with"),
]


@pytest.mark.parametrize(("content", "expected"), UNREADABLE)
def test_wrong_json_types_are_reported_by_record(tmp_path, content, expected):
    _, problems = read(tmp_path / "a.json", content)
    assert problems[0].startswith(expected) and "\n" not in problems[0]


def test_lines_of_json_are_reported_by_line(tmp_path):
    lines = ['{"image": "a.jpg", "caption": "a red kite"}', "", '{"image": "b.jpg"', "[1]"]
    captions, problems = read(tmp_path / "a.jsonl", "\n".join(lines))
    assert captions == KITE
    assert [problem.split(": ")[0] for problem in problems] == ["line 3", "line 4"]


# --- lists of words ---

WORDS = [["two", "children", "play", "chess"], ["a", "boat"], ["a", "red", "kite", "."]]
SENTENCES = ["two children play chess", "a boat", "a red kite ."]
NAMES = ("a.jpg", "b.jpg", "c.jpg")
WORD_FILES = {
    "caption": [{"image": name, "caption": words} for name, words in zip(NAMES, WORDS, strict=True)],
    "captions": [{"image": name, "captions": words} for name, words in zip(NAMES, WORDS, strict=True)],
    "nested": [{"image": name, "captions": [words]} for name, words in zip(NAMES, WORDS, strict=True)],
    "tokens": [{"image": name, "tokens": words} for name, words in zip(NAMES, WORDS, strict=True)],
    "by name": dict(zip(NAMES, WORDS, strict=True)),
    "COCO": {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
        "annotations": [{"image_id": number, "caption": words} for number, words in enumerate(WORDS)],
    },
    "Karpathy, tokens": {
        "images": [
            {"filename": name, "sentences": [{"tokens": words}]} for name, words in zip(NAMES, WORDS, strict=True)
        ]
    },
    "Karpathy, lists": {
        "images": [{"filename": name, "sentences": [words]} for name, words in zip(NAMES, WORDS, strict=True)]
    },
    "pandas": "image,caption\n" + "".join(f'{name},"{words}"\n' for name, words in zip(NAMES, WORDS, strict=True)),
    "numpy": "image,caption\n"
    + "".join(f'{name},"{str(words).replace(",", "")}"\n' for name, words in zip(NAMES, WORDS, strict=True)),
}


@pytest.mark.parametrize("kind", WORD_FILES)
def test_lists_of_words_are_joined_with_one_line_of_the_log(tmp_path, kind, caplog):
    captions, problems = read(tmp_path / "words", WORD_FILES[kind])
    assert captions == {name: [text] for name, text in zip(NAMES, SENTENCES, strict=True)} and not problems
    assert len(caplog.messages) == 1 and "3 captions are lists of words and were joined" in caplog.messages[0]


@pytest.mark.parametrize(
    "captions",
    [
        [["a red kite", "a kite"], ["a boat", "boat"], ["dog", "a dog"]],
        [["Kite.", "Drachen"], ["a boat", "the boat"], ["a dog", "the dog"]],  # two one-word captions
        [["一只红色的风筝", "天上的风筝"], ["一艘小船", "水上的船"], ["一只狗", "狗在草地上跑"]],
        [["เด็กสองคนเล่นหมากรุก", "เด็กเล่นหมากรุก"], ["เรือลำหนึ่ง", "เรือในทะเล"], ["ว่าวสีแดง", "ว่าวบนท้องฟ้า"]],
        [["kite"], ["boat"], ["dog"]],
    ],
)
def test_lists_of_captions_are_not_joined(tmp_path, captions, caplog):
    records = [{"image": name, "captions": texts} for name, texts in zip(NAMES, captions, strict=True)]
    expected = dict(zip(NAMES, captions, strict=True))
    assert read(tmp_path / "a.json", records) == (expected, [])
    assert read(tmp_path / "b.json", expected) == (expected, [])
    table = "image,raw\n" + "".join(f'{name},"{texts}"\n' for name, texts in expected.items())
    assert read(tmp_path / "a.csv", table) == (expected, [])
    assert not caplog.messages


def test_words_of_scripts_without_blanks_are_joined(tmp_path):
    records = [{"image": "a.jpg", "caption": ["一", "只", "红色", "的", "风筝"]}]
    assert read(tmp_path / "a.json", records)[0] == {"a.jpg": ["一 只 红色 的 风筝"]}


def test_words_with_blanks_do_not_hide_lists_of_words(tmp_path):
    lists = [*WORDS, ["an", "ice cream"]]
    records = [{"image": f"{number}.jpg", "caption": words} for number, words in enumerate(lists)]
    assert list(read(tmp_path / "a.json", records)[0].values()) == [[text] for text in (*SENTENCES, "an ice cream")]


def test_a_list_of_words_among_captions_is_reported(tmp_path):
    records = [{"image": name, "captions": ["a red kite", "a kite"]} for name in NAMES]
    records.append({"image": "d.jpg", "captions": ["two", "children", "play"]})
    captions, problems = read(tmp_path / "a.json", records)
    assert list(captions) == list(NAMES)
    assert problems == [
        'record 4: the captions ["two", "children", "play"] are single words, unlike those of other records; wanted '
        "sentences"
    ]


def test_captions_in_brackets_are_text(tmp_path):
    content = 'image,caption\na.jpg,[blurred] a kite\nb.jpg,"[1] [2]"\nc.jpg,[\'a]\n'
    assert read(tmp_path / "a.csv", content)[0] == {
        "a.jpg": ["[blurred] a kite"],
        "b.jpg": ["[1] [2]"],
        "c.jpg": ["['a]"],
    }

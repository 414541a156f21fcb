"""docs/data.md: its commands open the folders that it describes, and it lists all names that are recognised."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from small_run import ROOT, run_main
from test_folder import CAPTIONS, make_coco, make_csv, make_images, write_file
from written_shards import make_members, write_parquet, write_tar

from caption_jax.specs import DataSpec, build_spec
from input_pipeline.annotations.fields import CAPTION_FIELDS, IMAGE_FIELDS
from input_pipeline.sources import open_splits
from input_pipeline.sources.caption_files import DEFAULT_NAMES
from input_pipeline.sources.parquet import ID_COLUMNS, IMAGE_COLUMNS

DOCUMENT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [
    command.replace("\\\n", " ")
    for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    for command in re.findall(r"^python main\.py .*?(?<!\\)\n", block, flags=re.DOTALL | re.MULTILINE)
]


def open_documented(command: str, folder: Path) -> dict[str, int]:
    """Returns the numbers of images in the splits that a command of the document reads from a folder."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=values)
    flags.DEFINE_string("workdir", "", "Workdir.", flag_values=values)
    name = re.search(r"config\.data\.root=(\w+)", command)[1]
    arguments = [argument.replace(f"root={name}", f"root={folder}") for argument in shlex.split(command)[1:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", arguments)  # config_flags looks for overrides there
        values(arguments)
        splits = open_splits(build_spec(DataSpec, values.config.data, "data"))
    return {name: len(split) for name, split in splits.items()}


def test_the_first_command_reads_images_and_captions_csv(tmp_path):
    names = [f"{number}.jpg" for number in range(20)]
    make_images(tmp_path / "images", names)
    write_file(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{name},text\n" for name in names))
    assert open_documented(COMMANDS[0], tmp_path) == {"train": 18, "val": 2}


def test_the_command_with_column_names_reads_other_columns(tmp_path):
    make_images(tmp_path)
    write_file(tmp_path / "catalogue.csv", make_csv().replace("image,caption", "Photo,Legend"))
    assert open_documented(COMMANDS[1], tmp_path) == {"train": len(CAPTIONS) - 1, "val": 1}


def test_the_command_for_coco_reads_the_official_layout(tmp_path):
    content = make_coco()
    for split, numbers in {"train2017": (0, 1), "val2017": (2,)}.items():
        images = [content["images"][number] for number in numbers]
        make_images(tmp_path / split, [image["file_name"] for image in images])
        annotations = [item for item in content["annotations"] if item["image_id"] in numbers]
        write_file(tmp_path / "annotations" / f"captions_{split}.json", {"images": images, "annotations": annotations})
    assert open_documented(COMMANDS[2], tmp_path) == {"train": 2, "val": 1}


def test_the_command_for_tar_files_selects_the_shards_of_each_split(tmp_path):
    for name, keys in (("train-0000", "01"), ("train-0039", "23"), ("val-0", "4")):
        write_tar(tmp_path / f"{name}.tar", make_members({f"00{key}": ("a b",) for key in keys}))
    # The other shards of the range are missing.
    command = f"{COMMANDS[3]} --config.data.on_error=skip"
    assert open_documented(command, tmp_path) == {"train": 4, "val": 1}


def test_the_command_for_parquet_files_reads_the_layout_of_the_hub(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", {"001": ("a b",), "002": ("c d",)})
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", {"003": ("e f",)})
    assert open_documented(COMMANDS[4], tmp_path) == {"train": 2, "val": 1}
    without_patterns = re.sub(r"--config\.data\.shards\.\S+", "", COMMANDS[4])
    assert open_documented(without_patterns, tmp_path) == {"train": 2, "val": 1}


def test_the_commands_for_prepared_images_write_and_read_a_folder(tmp_path):
    pytest.importorskip("array_record", reason="array_record writes shards")
    names = [f"{number}.jpg" for number in range(20)]
    make_images(tmp_path / "images", names)
    write_file(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{name},text\n" for name in names))
    prepare, train = COMMANDS[5:]
    prepare = prepare.replace("=FOLDER", f"={tmp_path}").replace("=PREPARED", f"={tmp_path / 'prepared'}")
    assert run_main(*shlex.split(prepare)[2:], "--config.data.workers=0") == 0
    assert open_documented(train, tmp_path / "prepared") == {"train": 18, "val": 2}


def test_all_recognised_columns_are_listed():
    for names in (IMAGE_COLUMNS, ID_COLUMNS):
        assert f"| {', '.join(f'`{name}`' for name in names)} |" in DOCUMENT


def test_all_recognised_names_are_listed():
    text = " ".join(DOCUMENT.split())
    for names in (IMAGE_FIELDS, CAPTION_FIELDS, DEFAULT_NAMES):
        *others, last = (f"`{name}`" for name in names)
        conjunction = "or" if names is DEFAULT_NAMES else "and"
        assert f"{', '.join(others)} {conjunction} {last}" in text

"""Images of results are matched with the references however their ids are written, if that is one to one."""

from __future__ import annotations

import pytest

from caption_jax.errors import ConfigError
from caption_jax.metrics import ImageSetError, describe_subset, score
from caption_jax.metrics.image_matching import key_references, match_images
from caption_jax.metrics.results import ReferenceImage, select_images

COCO = [
    ReferenceImage(391895, "COCO_val2014_000000391895.jpg", ["a man rides a bike"]),
    ReferenceImage(22, "COCO_val2014_000000000022.jpg", ["a dog runs"]),
]
COCO_WITHOUT_NAMES = [ReferenceImage(image.image_id, "", image.captions) for image in COCO]
NAMED = [ReferenceImage(name, name, ["a dog"]) for name in ("a.jpg", "b.c.jpg", "000000000022.jpg")]
FOLDERS = [ReferenceImage(name, name, ["a dog"]) for name in ("x/1.jpg", "y/1.jpg", "y/z/2.jpg")]

# References, ids of the results, the ids or names that they are matched with, and how.
MATCHES = {
    "ids": (COCO, [22, 391895], [22, 391895], ""),
    "floating-point ids": (COCO, [22.0, 391895.0], [22, 391895], ""),
    "names": (COCO, [image.name for image in COCO], [image.name for image in COCO], ""),
    "a part of the images": (COCO, [22], [22], ""),
    "text ids": (COCO, ["391895", "22"], [391895, 22], "2 of 2 images matched by number: '391895' is image 391895"),
    "padded ids": (COCO, ["000000391895", "000022"], [391895, 22], "by number"),
    "stems": (
        COCO,
        [f"COCO_val2014_{number:012d}" for number in (391895, 22)],
        [image.name for image in COCO],
        "2 of 2 images matched by file name without folder and suffix: 'COCO_val2014_000000391895' is image 391895 "
        "(COCO_val2014_000000391895.jpg)",
    ),
    "COCO names without names in the references": (
        COCO_WITHOUT_NAMES,
        ["val/COCO_val2014_000000391895.jpg", "val/COCO_val2014_000000000022.jpg"],
        [391895, 22],
        "the number in the file name",
    ),
    "names of 2017 without names in the references": (
        COCO_WITHOUT_NAMES,
        ["000000391895.jpg", "000000000022.jpg"],
        [391895, 22],
        "the number in the file name",
    ),
    "paths": (NAMED, ["/data/a.jpg", "/data/b.c.jpg"], ["a.jpg", "b.c.jpg"], "file name without folder"),
    "Windows paths": (NAMED, ["C:\\data\\a.jpg", "C:\\data\\b.c.jpg"], ["a.jpg", "b.c.jpg"], "without folder"),
    "another suffix": (NAMED, ["a.PNG", "b.c"], ["a.jpg", "b.c.jpg"], "file name without folder and suffix"),
    "numbers of names": (NAMED, [22], ["000000000022.jpg"], "the number in the file name"),
    "paths with folders": (FOLDERS, ["/d/x/1.jpg", "/d/y/1.jpg"], ["x/1.jpg", "y/1.jpg"], "the last two components"),
    "deeper paths": (FOLDERS, ["./y/z/2.jpg", "./y/1.jpg"], ["y/z/2.jpg", "y/1.jpg"], "the last two components"),
    "an image without references": (NAMED, ["a.jpg", "d.jpg"], ["a.jpg"], "1 of 2 images matched by name"),
}


@pytest.mark.parametrize("description", MATCHES)
def test_images_are_matched(description):
    references, keys, expected, how = MATCHES[description]
    match = match_images(references, keys)
    captions = match.rename({key: f"caption {key}" for key in keys}, by_id=match.by_id)
    known = key_references(references, by_id=match.by_id)
    assert [key for key in captions if key in known] == expected
    assert list(captions.values()) == [f"caption {key}" for key in keys]
    if how and description != "an image without references":
        assert how in match.description and "\n" not in match.description
    elif not how:
        assert match.description == ""


@pytest.mark.parametrize(
    ("references", "keys", "message"),
    [
        (
            COCO,
            ["x", "y"],
            r"r\.json: no image matches the references: their first image is 391895, 'COCO_val.*'x', 'y'",
        ),
        (FOLDERS, ["2/1.jpg", "1/1.jpg"], r"only by file name without folder, which is not one to one: '2/1\.jpg'"),
        (NAMED, ["x/a.jpg", "y/a.jpg"], r"not one to one: 'x/a\.jpg', 'y/a\.jpg' fits several images"),
        (
            [ReferenceImage(1, "2.jpg", ["a"]), ReferenceImage(2, "1.jpg", ["b"])],
            ["1", "2"],
            r"'1' is image 1 by number, but image 2 by file name without folder and suffix",
        ),
    ],
)
def test_images_that_cannot_be_matched_one_to_one_are_refused(references, keys, message):
    with pytest.raises(ImageSetError, match=message) as error:
        match_images(references, keys, "r.json")
    assert "write the ids or the" in str(error.value) and "\n" not in str(error.value)


REFERENCES = {1: ["a dog runs"], 2: ["two cats"], 3: ["a red ball"]}


def test_results_of_a_part_of_the_images_are_refused_with_the_counts():
    counts = r"have 3 images, the results 2: 2 without a result: 1, 3; 1 without references: 4; "
    message = counts + r"to score only images that have both \(1\), use subset='common'"
    with pytest.raises(ImageSetError, match=message):
        score(REFERENCES, {2: "two cats", 4: "a hat"})


def test_the_images_in_common_are_scored_on_request():
    hypotheses = {3: "a red ball", 2: "two dogs", 4: "a hat"}
    expected = score({i: REFERENCES[i] for i in (2, 3)}, {i: hypotheses[i] for i in (2, 3)})
    assert score(REFERENCES, hypotheses, subset="common") == expected
    assert describe_subset(REFERENCES, hypotheses) == (
        "common: 2 of the 3 images with references; 1 without a result and 1 without references are excluded"
    )
    assert select_images(REFERENCES, hypotheses, {1: "", 2: ""}, subset="common") == [2]


def test_invalid_subsets_are_rejected():
    with pytest.raises(ConfigError, match="subset is 'some'; it must be one of 'all', 'common'"):
        score(REFERENCES, {1: "a"}, subset="some")
    with pytest.raises(ImageSetError, match="have 3 images, the results 1: 3 without a result"):
        score(REFERENCES, {5: "a"}, subset="common")
    with pytest.raises(ImageSetError, match="no images in common"):
        select_images(REFERENCES, {1: "a"}, {2: "a"}, subset="common")

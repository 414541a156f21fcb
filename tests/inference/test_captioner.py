"""`Captioner.caption` accepts one image or many, of every kind, in batches of a few sizes."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small_run
from PIL import Image
from random_model import STEP, write_random_model

import caption_jax
from caption_jax.inference.captioner import Caption, Captioner
from input_pipeline.images import ImageError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "boxes"
    write_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(workdir) -> Captioner:
    return caption_jax.load(workdir, batch_size=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "box.png"
    small_run.box_image().save(path)
    return path


KINDS = {
    "str": str,
    "Path": Path,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file in memory": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "PIL image": Image.open,
    "array": lambda path: np.array(Image.open(path)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_of_each_kind_has_one_caption(captioner, path, kind):
    expected = captioner.caption([path])[0]
    caption = captioner.caption(KINDS[kind](path))
    assert isinstance(caption, Caption) and caption.text and caption.log_prob < 0
    assert (caption.text, caption.tokens) == (expected.text, expected.tokens)
    assert caption.log_prob == pytest.approx(expected.log_prob, abs=1e-5)


def test_a_list_a_tuple_and_a_batch_of_arrays_have_a_list_of_captions(captioner, path):
    expected = captioner.caption(path).text
    images = [make(path) for make in KINDS.values()]
    for batch in (images, tuple(make(path) for make in KINDS.values()), np.stack([images[-1]] * 3), [path], (path,)):
        captions = captioner.caption(batch)
        assert [caption.text for caption in captions] == [expected] * len(batch)
    assert captioner.caption([]) == captioner.caption(()) == []


def test_threads_get_the_captions_of_sequential_calls(workdir, path):
    captioner = caption_jax.load(workdir, batch_size=6)  # whose programs are not compiled yet
    made, make, barrier = [], captioner._generate._make_program, threading.Barrier(8)
    captioner._generate._make_program = lambda *arguments: (made.append(arguments[1]), make(*arguments))[1]

    def call(number: int) -> list[Caption]:
        barrier.wait()
        images = [kind(path) for kind in KINDS.values()][: 1 + number % 4]
        return [caption for _ in range(5) for caption in captioner.caption(images)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(8)))
    assert len(made) == 2, "one program for one image, and one for up to four"
    for number, captions in enumerate(results):
        expected = captioner.caption(path)
        assert len(captions) == 5 * (1 + number % 4)
        assert {(caption.text, caption.tokens) for caption in captions} == {(expected.text, expected.tokens)}


def test_coroutines_get_the_captions_of_sequential_calls(captioner, path):
    async def caption_all() -> list[Caption]:
        return await asyncio.gather(*(asyncio.to_thread(captioner.caption, path) for _ in range(6)))

    assert {caption.text for caption in asyncio.run(caption_all())} == {captioner.caption(path).text}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            3,
            r"caption: the image is a int; expected a path, encoded bytes, a binary file, a PIL",
        ),
        (None, r"caption: the image is a NoneType"),
        (["a.png", None], r"caption: image 1 of 2 is a NoneType; expected a path"),
        ([["a.png"]], r"caption: image 0 of 1 is a list"),
        ({"a.png"}, r"caption takes one image or a list of images, not a set; pass list"),
        ((name for name in ["a.png"]), r"caption takes one image or a list of images, not a generator; pass list"),
        (io.StringIO("text"), r"StringIO is open in text mode; open it with mode 'rb'"),
        ([io.StringIO("text")], r"StringIO is open in text mode"),
    ],
    ids=["int", "None", "None in a list", "nested list", "set", "generator", "text file", "text file in a list"],
)
def test_other_types_are_rejected_with_a_remedy(captioner, images, message):
    with pytest.raises(TypeError, match=message):
        captioner.caption(images)


def test_arrays_of_other_libraries_are_rejected_with_a_remedy(captioner):
    jax_array = __import__("jax").numpy.zeros((4, 4, 3), "uint8")
    with pytest.raises(TypeError, match=r"is a jax.*ArrayImpl; expected .*; convert it with np\.asarray"):
        captioner.caption(jax_array)


def test_errors_name_the_file(captioner, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with (tmp_path / "broken.jpg").open("rb") as file, pytest.raises(ImageError, match=r"broken\.jpg: "):
        captioner.caption(file)
    with pytest.raises(ImageError, match=r"broken\.jpg: cannot be read \(read of closed file\)"):
        captioner.caption(file)
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        captioner.caption(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="BytesIO: the file is empty"):
        captioner.caption(io.BytesIO())


def count_sizes(captioner: Captioner, monkeypatch) -> list[int]:
    """Returns a list to which the size of each batch is appended."""
    generate, sizes = captioner._generate, []

    def record_size(variables, pixels, *arguments):
        sizes.append(len(pixels))
        return generate(variables, pixels, *arguments)

    monkeypatch.setattr(captioner, "_generate", record_size)
    return sizes


def test_batches_are_padded_to_a_few_sizes(captioner, path, monkeypatch):
    assert captioner.batch_sizes == (1, 4, 6)
    assert caption_jax.load(captioner._workdir).batch_sizes == (1, 4, 16)
    assert caption_jax.load(captioner._workdir, batch_size=1).batch_sizes == (1,)
    sizes = count_sizes(captioner, monkeypatch)
    expected = captioner.caption(path)
    for count, padded in {1: [1], 2: [4], 4: [4], 5: [6], 6: [6], 7: [6, 6], 14: [6, 6, 6]}.items():
        sizes.clear()
        captions = captioner.caption([path] * count)
        assert [caption.text for caption in captions] == [expected.text] * count
        assert sizes == padded, "a rest after full batches uses the program of the full batches"


def test_warm_up_compiles_each_size_once_and_returns_the_seconds(captioner, path, monkeypatch):
    sizes = count_sizes(captioner, monkeypatch)
    assert captioner.warm_up([3, 2, 100]) > 0
    assert sizes == [4, 6]
    sizes.clear()
    captioner.warm_up()
    assert sizes == [1, 4, 6]
    with pytest.raises(ValueError, match=r"batch_sizes is \[0\]; sizes must be at least 1"):
        captioner.warm_up([0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        caption_jax.load(captioner._workdir, batch_size=0)


def test_the_representation_states_the_model(captioner, workdir):
    text = repr(captioner)
    assert "\n" not in text
    for part in (
        f"workdir={str(workdir)!r}",
        f"step={STEP}",
        "encoder='EfficientNet micro'",
        "image_size=32",
        "vocabulary=",
        "decode='greedy max_length=10'",
        "batch_size=6",
    ):
        assert part in text
    changed = caption_jax.load(workdir, decode_config={"method": "beam", "num_beams": 3}, limits={"image_pixels": 5000})
    assert "num_beams=3" in repr(changed) and "max_length=10" in repr(changed)  # the other keys are those of the run


def test_a_single_image_is_not_an_iterable_of_images(captioner, path):
    with pytest.raises(TypeError, match="caption_each takes a list of images, not a single str"):
        captioner.caption_each(str(path))
    with pytest.raises(caption_jax.ImageError):
        captioner.caption(b"no image")


_SCRIPT = """
import sys, time, jax, caption_jax
from jax._src import monitoring
hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event))
captioner = caption_jax.load(sys.argv[1])
print(captioner.caption(sys.argv[2]).text)
print(sum(event.endswith("cache_hits") for event in hits), jax.config.jax_compilation_cache_dir)
print("flax" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["workdir", "user cache"])
def test_a_second_process_loads_the_compiled_program(workdir, path, tmp_path, place):
    folder = shutil.copytree(workdir, tmp_path / "boxes")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_COMP", "XLA_FLAGS"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(small_run.ROOT)}
    prepare = "" if place == "workdir" else "import os; os.access = lambda path, mode: 'boxes' not in str(path)\n"
    command = [sys.executable, "-c", prepare + _SCRIPT, str(folder), str(path)]
    outputs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        for _ in range(2)
    ]
    (caption, first, _), (second_caption, second, has_flax) = (output.splitlines() for output in outputs)
    assert caption == second_caption
    assert (first, second) == ("0 None", "1 None"), "JAX's configuration is unchanged"
    assert has_flax == "False", "the second process does not trace the program"
    used, unused = folder / "compile_cache", tmp_path / "cache" / "caption-jax"
    used, unused = (used, unused) if place == "workdir" else (unused, used)
    assert any(file.name.startswith("caption-") for file in used.iterdir()) and not unused.exists()


def test_limits_of_the_run_can_be_replaced(workdir, tmp_path):
    Image.new("RGB", (300, 40)).save(tmp_path / "wide.png")
    limits = {"image_side": 200}
    captioner = caption_jax.load(workdir, limits=limits)
    for image in (tmp_path / "wide.png", (tmp_path / "wide.png").read_bytes(), np.zeros((40, 300, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"the maximum side is 200 \(config\.limits\.image_side\)"):
            captioner.caption(image)
        assert caption_jax.load(workdir).caption(image).text is not None
    with pytest.raises(ValueError, match=r"config\.limits has no key 'image_sides'"):
        caption_jax.load(workdir, limits={"image_sides": 200})


class EndlessFile(io.RawIOBase):
    """A file without an end, such as a response of a server."""

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "reading everything would not end"
        return bytes(min(size, 2**16))


def test_file_objects_are_read_up_to_the_limit(workdir):
    captioner = caption_jax.load(workdir, limits={"image_file_bytes": 1_000_000})
    with pytest.raises(ImageError, match=r"EndlessFile: has 1,000,001 bytes, more than the limit of 1,000,000"):
        captioner.caption(EndlessFile())

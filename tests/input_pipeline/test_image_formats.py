"""Images are recognised by content, whatever their names, and files that cannot be read are named with the reason."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from input_pipeline.image_formats import FORMATS, find_folder_images, sniff_format
from input_pipeline.images import ImageError, decode_image, make_thumbnail

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "folder_suffixes"
CASE_NAMES = ["five", "four.jpe", "one.jpg", "seven.heic", "six.jp2", "three.avif", "two.jfif"]
RED, BLUE = (220, 30, 30), (30, 30, 220)
# Format -> Pillow's name of the format, and options that make the colours nearly exact.
ENCODERS = {
    "JPEG": ("JPEG", {"quality": 95}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {}),
    "PNM": ("PPM", {}),
    "AVIF": ("AVIF", {"quality": 95}),
    "JPEG 2000": ("JPEG2000", {}),
}
SIGNATURES = {
    "raw JPEG 2000": (b"\xff\x4f\xff\x51\x00\x2f", "JPEG 2000"),
    "big-endian TIFF": (b"MM\0*\0\0\0\x08", "TIFF"),
    "BigTIFF": (b"II+\0\x08\0\0\0", "TIFF"),
    "ASCII greymap": (b"P2\n# by hand\n2 2\n", "PNM"),
    "JPEG XL file": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "JPEG XL codestream": (b"\xff\x0a\xfa", "JPEG XL"),
    "iPhone photograph": (b"\0\0\0\x24ftypheic\0\0\0\0mif1MiPrmiafMiHBheic", "HEIC"),
    "HEIF with the general brand": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
    "AVIF with the general brand": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
    "macOS metadata": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "AppleDouble"),
    "video": (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41", None),
    "QuickTime": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", None),
    "audio": (b"RIFF\x24\x08\0\0WAVEfmt ", None),
    "text about a BMP": (b"BMP files are large, and this is a text file.", None),
    "text about a PNM": (b"P5 is a paragraph of the law.", None),
    "text about a GIF": (b"GIF is a format.", None),
    "UTF-16 text": ("a dog".encode("utf-16"), None),
    "JSON": (b'{"image": "a.jpg"}', None),
    "ZIP": (b"PK\x03\x04\x14\0", None),
    "empty": (b"", None),
}


def make_halves(size: int = 64) -> Image.Image:
    """An image with a red left half and a blue right half."""
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[:, : size // 2], pixels[:, size // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def assert_halves(pixels: np.ndarray) -> None:
    side = len(pixels)
    np.testing.assert_allclose(pixels[side // 2, side // 4].astype(int), RED, atol=12)
    np.testing.assert_allclose(pixels[side // 2, -1 - side // 4].astype(int), BLUE, atol=12)


def list_names(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in find_folder_images(str(folder))]


@pytest.mark.parametrize("name", ENCODERS)
def test_images_are_recognised_and_read_under_any_name(name, tmp_path):
    pillow_name, options = ENCODERS[name]
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this installation of Pillow cannot write AVIF")
    data = encode(make_halves(), pillow_name, **options)
    assert sniff_format(data) == name and name in FORMATS
    for file_name in ("photo", "photo.dat", "photo.jpg", "photo.txt"):
        (tmp_path / file_name).write_bytes(data)
        assert_halves(decode_image(tmp_path / file_name, 16))
        assert_halves(make_thumbnail(tmp_path / file_name, 16))
    assert list_names(tmp_path) == ["photo", "photo.dat", "photo.jpg", "photo.txt"]


@pytest.mark.parametrize("description", SIGNATURES)
def test_formats_are_recognised_by_their_first_bytes(description, tmp_path):
    data, expected = SIGNATURES[description]
    assert sniff_format(data) == expected
    (tmp_path / "file").write_bytes(data)
    assert list_names(tmp_path) == (["file"] if expected not in (None, "AppleDouble") else [])


def test_folders_are_searched_recursively_without_dot_files_and_other_files(tmp_path):
    image = encode(make_halves(), "PNG")
    names = ["b.png", "a", "c.JPG", "sub/deep/d.jfif", "sub/e.png", ".hidden.png", ".thumbnails/f.png", "._b.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    for name in ("notes.txt", "captions.csv", "Thumbs.db", "sub/video.mp4", "empty"):
        (tmp_path / name).write_bytes(b"" if name == "empty" else b"image,caption\n")
    (tmp_path / "broken.jpg").write_text("not an image")  # listed without being opened; reading it reports the reason
    assert list_names(tmp_path) == ["a", "b.png", "broken.jpg", "c.JPG", "sub/e.png", "sub/deep/d.jfif"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires named pipes")
def test_listing_does_not_wait_for_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert list_names(tmp_path) == []


def make_heic(image: Image.Image, **options) -> bytes:
    pytest.importorskip("pillow_heif", reason="requires the heic extra").register_heif_opener()
    return encode(image, "HEIF", quality=95, **options)


def test_heic_is_read_with_the_extra_whatever_the_suffix(tmp_path):
    data = make_heic(make_halves())
    assert sniff_format(data) == "HEIC"
    (tmp_path / "IMG_0001.jpg").write_bytes(data)  # phones and messengers rename photographs like this
    assert_halves(decode_image(tmp_path / "IMG_0001.jpg", 16))
    assert_halves(decode_image(data, 16, "crop"))


def test_the_orientation_of_heic_images_is_applied_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = make_heic(make_halves().transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())
    assert_halves(decode_image(rotated, 16))
    assert_halves(make_thumbnail(rotated, 16))


def test_damaged_heic_is_an_image_error():
    data = make_heic(make_halves())
    for damaged in (data[:-200], data[:40], b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)):
        with pytest.raises(ImageError, match="damaged"):
            decode_image(damaged, 16, name="damaged")


def test_heic_without_the_extra_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # simulates a missing package
    monkeypatch.setattr("input_pipeline.image_formats.is_installed", lambda module: False)
    with pytest.raises(ImageError) as error:
        decode_image(struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heix", 0, b"mif1", b"heix"), 8, name="IMG_1.HEIC")
    assert str(error.value) == (
        "IMG_1.HEIC: is a HEIC image; reading HEIC needs packages that are not installed (pillow_heif): "
        "pip install 'caption-jax[heic]', or '.[heic]' in a checkout"
    )


def test_avif_without_support_in_pillow_is_explained(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImageError, match=r"a\.avif: is in the format AVIF, which this installation of Pillow cannot"):
        decode_image(b"\0\0\0\x18ftypavif\0\0\0\0avifmiaf", 8, name="a.avif")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SIGNATURES["macOS metadata"][0], "not an image but metadata of macOS"),
        (SIGNATURES["JPEG XL file"][0], "JPEG XL image, which is not supported; convert it"),
        (b"\x89PNG\r\n\x1a\n", "starts like a PNG image, but cannot be decoded"),
        (b"root:x:0:0:secret", r"not in a supported image format \(the file contains text\); expected JPEG, PNG"),
        (b"\x7fELF\0\1secret", r"not in a supported image format \(the file contains binary data\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", r"the format PostScript \(EPS\), which is not read, because its decoder starts"),
        (b"\xc5\xd0\xd3\xc6\x20\0\0\0", r"PostScript \(EPS\), .* convert it to PNG or JPEG"),
        (b"\xd7\xcd\xc6\x9a\0\0", "the format WMF, which is not read, because its decoder starts other programs"),
        (b"\1\0\0\0\x6c\0\0\0" + bytes(32) + b" EMF\0\0\1\0", "the format EMF, which is not read, because"),
        (b"%PDF-1.7\n", "the format PDF, which is not read; convert it"),
        (b'<?xml version="1.0"?><svg xmlns="">', "the format SVG, which is not read"),
        (b"SIMPLE  =                    T", "the format FITS, which is not read"),
        (b"8BPS\0\1", "the format PSD, which is not read"),
        (b"\0\0\1\0\1\0\x10\x10", "the format ICO, which is not read"),
        (b"GRIB\0\0", "the format GRIB, which is not read"),
        (b"qoif\0\0", "the format QOI, which is not read"),
        (
            b"\n<!DOCTYPE html><html>",
            r"is a web page \(HTML\), not an image: the download of the image may have failed",
        ),
    ],
)
def test_files_that_are_named_explicitly_are_errors_with_the_reason(tmp_path, data, message):
    (tmp_path / "._a.jpg").write_bytes(data)
    for read in (decode_image, make_thumbnail):
        with pytest.raises(ImageError, match=message) as error:
            read(tmp_path / "._a.jpg", 8)
        assert "secret" not in str(error.value)  # a link may lead to any file
        with pytest.raises(ImageError, match=message):
            read(data, 8, name="parquet row 3")


@pytest.mark.parametrize("image_format", ["EPS", "PDF", "ICO", "ICNS", "DDS", "QOI", "TGA", "PCX", "SGI", "MSP"])
def test_pillow_does_not_open_other_formats(image_format, monkeypatch):
    image = make_halves().convert("1") if image_format == "MSP" else make_halves()
    data = encode(image, image_format)
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("a program was started"))
    for read in (decode_image, make_thumbnail):
        with pytest.raises(ImageError, match=r"which is not read|not in a supported image format"):
            read(data, 8, name="image")


def test_images_that_their_caller_opened_are_not_loaded_in_other_formats():
    """Opening an EPS reads its header, and loading it starts Ghostscript."""
    image = Image.open(io.BytesIO(encode(make_halves(), "EPS")))
    for read in (decode_image, make_thumbnail):
        with pytest.raises(
            ImageError, match=r"PIL image: is in the format EPS, which is not read, because its decoder"
        ):
            read(image, 8)
    loaded = Image.open(io.BytesIO(encode(make_halves(), "PCX")))
    loaded.load()  # the decision of the caller
    assert_halves(decode_image(loaded, 16))
    assert_halves(decode_image(Image.open(io.BytesIO(encode(make_halves(), "PNG"))), 16))


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases, which are not part of this repository")
@pytest.mark.parametrize("folder", ["clean", "photos"])
def test_every_photograph_of_the_cases_is_read_or_named_with_a_reason(folder):
    assert list_names(CASES / folder) == CASE_NAMES
    for path in find_folder_images(str(CASES / folder)):
        if path.endswith(".heic"):  # only a header, which cannot be decoded with the extra either
            with pytest.raises(ImageError, match=r"seven\.heic: .*(caption-jax\[heic\]|cannot be decoded)"):
                decode_image(path, 32)
        else:
            assert decode_image(path, 32).std() > 5

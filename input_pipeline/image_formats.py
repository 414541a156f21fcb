"""Image formats recognised by the first bytes of a file, and the images of a folder. File names do not matter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from input_pipeline.errors import MissingFileError
from input_pipeline.extras import describe_missing, is_installed
from input_pipeline.safe_open import UnreadableFileError, read_start

# Suffixes of files that are listed without being opened, which keeps large folders and network drives fast. If the
# content of such a file is not an image, reading it raises an error that names it.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Suffixes of image names in general, whether or not such files are opened.
NAME_SUFFIXES = (*IMAGE_SUFFIXES, ".jfif", ".jpe", ".avif", ".jp2", ".heic", ".heif")
FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, AVIF, JPEG 2000 or HEIC"  # for messages

_HEADER_BYTES = 64  # enough for the first brands of an ISO base media file (AVIF, HEIC)
_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),  # with a valid header size
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]|II\0\*|MM\*\0"),  # the last two are byte orders that some programs write
    "PNM": re.compile(rb"P[1-6]\s+(?:#|\d+\s)"),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    "JPEG XL": re.compile(rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"),
    "AppleDouble": re.compile(rb"\0\x05\x16\x07"),  # metadata that macOS stores as `._photo.jpg` on other disks
}
# Formats that are read: the class or function that opens a file, and the name of the format in Pillow.
DECODERS = {
    "JPEG": ("PIL.JpegImagePlugin.jpeg_factory", "JPEG"),
    "MPO": ("PIL.JpegImagePlugin.jpeg_factory", "MPO"),  # several JPEGs in a file, of which the first is read
    "PNG": ("PIL.PngImagePlugin.PngImageFile", "PNG"),
    "WebP": ("PIL.WebPImagePlugin.WebPImageFile", "WEBP"),
    "GIF": ("PIL.GifImagePlugin.GifImageFile", "GIF"),
    "BMP": ("PIL.BmpImagePlugin.BmpImageFile", "BMP"),
    "TIFF": ("PIL.TiffImagePlugin.TiffImageFile", "TIFF"),
    "PNM": ("PIL.PpmImagePlugin.PpmImageFile", "PPM"),
    "AVIF": ("PIL.AvifImagePlugin.AvifImageFile", "AVIF"),
    "JPEG 2000": ("PIL.Jpeg2KImagePlugin.Jpeg2KImageFile", "JPEG2000"),
    "HEIC": ("pillow_heif.HeifImageFile", "HEIF"),
}
# Formats that Pillow knows and that are not read. The decoders of the first group start other programs.
_PROGRAMS = {
    "PostScript (EPS)": re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"),
    "WMF": re.compile(rb"\xd7\xcd\xc6\x9a|\x01\0\t\0\0\x03"),
    "EMF": re.compile(rb"\x01\0\0\0.{36} EMF", re.DOTALL),
}
_OTHERS = {
    "PDF": re.compile(rb"%PDF-"),
    "SVG": re.compile(rb"\s*(<\?xml.*)?<svg", re.DOTALL),
    "HTML": re.compile(rb"\s*<(!doctype html|html|head|body)", re.IGNORECASE),
    "PSD": re.compile(rb"8BPS"),
    "FITS": re.compile(rb"SIMPLE  ="),
    "HDF5": re.compile(rb"\x89HDF\r\n\x1a\n"),
    "GRIB": re.compile(rb"GRIB"),
    "BUFR": re.compile(rb"BUFR"),
    "ICO": re.compile(rb"\x00\x00[\x01\x02]\x00[\x01-\xff]\x00"),
    "ICNS": re.compile(rb"icns"),
    "DDS": re.compile(rb"DDS "),
    "QOI": re.compile(rb"qoif"),
    "MPEG": re.compile(rb"\x00\x00\x01[\xb3\xba]"),
    "ZIP": re.compile(rb"PK\x03\x04"),
}
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_NOT_IMAGES = ("AppleDouble",)


def sniff_format(data: bytes) -> str | None:
    """Returns the name of the image format that data starts with, or None if it is not an image.

    The names are those of `FORMATS`, "JPEG XL" and "AppleDouble". The latter two are recognised but cannot be read.

    Args:
        data: the first 64 bytes of a file, or more.
    """
    header = bytes(data[:_HEADER_BYTES])
    if header[4:8] == b"ftyp":  # an ISO base media file: size, "ftyp", major brand, version, compatible brands
        end = min(int.from_bytes(header[:4], "big"), len(header))
        brands = {header[8:12], *(header[start : start + 4] for start in range(16, end - 3, 4))}
        return "AVIF" if brands & _AVIF_BRANDS else "HEIC" if brands & _HEIC_BRANDS else None
    return next((name for name, signature in _SIGNATURES.items() if signature.match(header)), None)


def describe_unreadable(data: bytes) -> str:
    """Returns why an encoded image is not identified, with the remedy if there is one, and without its content.

    Args:
        data: the first 64 bytes of a file, or more.
    """
    name = sniff_format(data)
    if name == "HEIC" and not is_installed("pillow_heif"):
        return f"is a HEIC image; reading HEIC needs {describe_missing('pillow_heif')}"
    if name == "AppleDouble":
        return "is not an image but metadata of macOS (AppleDouble), which can be deleted"
    if name == "JPEG XL":
        return "is a JPEG XL image, which is not supported; convert it to JPEG, PNG or WebP"
    if name in ("AVIF", "JPEG 2000", "WebP") and not _is_supported_by_pillow(name):
        return f"is in the format {name}, which this installation of Pillow cannot read; install Pillow's wheel"
    if name is not None:
        return f"starts like a {name} image, but cannot be decoded: the file is damaged or incomplete"
    header = bytes(data[:_HEADER_BYTES])
    for refused, signature in (_PROGRAMS | _OTHERS).items():
        if signature.match(header):
            return describe_refused(refused)
    kind = "text" if header and header.strip().isascii() and b"\0" not in header else "binary data"
    return f"not in a supported image format (the file contains {kind}); expected {FORMATS}"


def describe_refused(name: str) -> str:
    """Returns why images in a format that is not in `DECODERS` are not read, with the remedy."""
    if name == "HTML":
        return "is a web page (HTML), not an image: the download of the image may have failed; download it again"
    reason = ", because its decoder starts other programs" if name in (*_PROGRAMS, "EPS") else ""
    return f"is in the format {name}, which is not read{reason}; convert it to PNG or JPEG"


def find_folder_images(folder: str, on_link: Callable[[str], None] = lambda path: None) -> Iterator[str]:
    """Yields the image files of a folder and its subfolders, in the order of their names.

    Files with a suffix in `IMAGE_SUFFIXES` are not opened. All other files are recognised by their first bytes, and
    files that are not images are omitted. Files and folders whose names start with a dot are omitted, too. A file that
    cannot be opened is yielded, so that reading it reports the reason.

    Args:
        folder: the folder.
        on_link: called with the path of each image that is a link.
    """
    pending = [folder]
    while pending:  # without recursion, because folders can be nested more deeply than calls
        subfolders = []
        for entry in sorted(os.scandir(pending.pop()), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                subfolders.append(entry.path)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES) or (entry.is_file() and _is_image(entry.path)):
                if entry.is_symlink():
                    on_link(entry.path)
                yield entry.path
        pending += reversed(subfolders)


def _is_image(path: str) -> bool:
    try:
        name = sniff_format(read_start(path, _HEADER_BYTES))
    except (MissingFileError, UnreadableFileError):
        return True
    return name is not None and name not in _NOT_IMAGES


def _is_supported_by_pillow(name: str) -> bool:
    from PIL import features  # imported lazily: this module is also used where nothing is decoded

    return bool(features.check({"AVIF": "avif", "JPEG 2000": "jpg_2000", "WebP": "webp"}[name]))

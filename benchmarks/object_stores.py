"""Images per second that training reads from a local disk, and from S3 and Google Cloud Storage, emulated on loopback.

    python -m benchmarks.object_stores [--root=FOLDER] [--buckets=s3://BUCKET/FOLDER,...] [--count=400] [--rounds=5]

The same photographs are stored as a folder and as a tar file. Each side is a separate process with two threads, which
reads, decodes and resizes them. Each cell compares a bucket with the local disk, so a ratio below 1 is what the
requests cost. The emulators run on the same cores as the clients; with `--buckets`, real buckets are measured instead.
The photographs are copied there and deleted at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.alternate import Seconds, alternate, print_result, print_times, serve, start_sides, use_cores
from benchmarks.conditions import Conditions
from benchmarks.input_rates import CORES, PHOTOGRAPHS
from benchmarks.peers.image_loaders import list_images

LAYOUTS = {"folder": "folder", "tar": "webdataset"}  # name -> config.data.source
CAPTION = "a photograph"


def write_layouts(paths: list[str], target: Path) -> None:
    """Writes photographs to `folder/` with a caption file, and to `tar/train.tar`, under numbers as names."""
    images = target / "folder" / "images"
    images.mkdir(parents=True)
    (target / "tar").mkdir()
    with (target / "folder" / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        writer.writerows((f"{number}.jpg", CAPTION) for number in range(len(paths)))
    text = target / "caption.txt"
    text.write_text(CAPTION)
    with tarfile.open(target / "tar" / "train.tar", "w") as tar:
        for number, path in enumerate(paths):
            shutil.copyfile(path, images / f"{number}.jpg")
            tar.add(path, f"{number}.jpg")
            tar.add(text, f"{number}.txt")


def make_side(root: str, source: str, size: int, count: int) -> Callable[[], None]:
    """Returns a function that reads, decodes and resizes `count` images.

    Args:
        root: local folder or URL of the dataset.
        source: `config.data.source`.
        size: side of the squares, in pixels.
        count: number of images.
    """
    from caption_jax.config import default_config
    from input_pipeline.data_spec import DataSpec
    from input_pipeline.images import Preprocessing
    from input_pipeline.inputs import Pixels
    from input_pipeline.sources import open_splits

    values = default_config().data.to_dict() | {"source": source, "root": root}
    inputs = Pixels(open_splits(DataSpec.from_config(values))["train"], Preprocessing(size))
    pool = ThreadPoolExecutor(CORES)

    def load_images() -> None:
        for pixels in pool.map(inputs.load, range(count)):  # raises an error if an image cannot be read
            assert pixels.shape == inputs.shape

    return load_images


@contextlib.contextmanager
def uploaded(local: Path, url: str) -> Iterator[str]:
    """Copies a folder to a bucket, and deletes the copy at the end of the `with` block."""
    from input_pipeline.buckets import bucket_client

    client = bucket_client(url)
    client.put(f"{local}/", url, recursive=True)
    try:
        yield url
    finally:
        client.rm(url, recursive=True)


def make_cells(seconds: Mapping[str, Seconds], images: int) -> dict[str, dict[str, float]]:
    """Compares each side, named `<store> <layout>`, with the local disk, in images per second."""
    cells = {}
    for name, (wall, _) in seconds.items():
        store, layout = name.rsplit(" ", 1)
        local = seconds[f"local {layout}"].wall
        if store != "local":
            cells[name] = {"ours": images / wall, "peer": images / local, "ratio": local / wall}
    return cells


@contextlib.contextmanager
def emulated() -> Iterator[dict[str, tuple[str, Mapping[str, str]]]]:
    """Yields the URL and the environment of an emulated bucket of each kind."""
    from tests import bucket_emulator, s3_emulator  # of the test extra

    with bucket_emulator.emulate_bucket() as gcs, s3_emulator.emulate_s3() as s3:
        yield {"s3": (f"s3://{s3_emulator.BUCKET}", s3.environment), "gs": ("gs://bucket", gcs.environment)}


def main() -> None:
    """Runs the benchmark, or one side as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--buckets", default="", help="URLs of real buckets, separated by commas")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help="side to run: a local folder and its copy, equal for the local side")
    parser.add_argument("--layout", choices=LAYOUTS)
    options = parser.parse_args()
    settings = [f"--{name}={getattr(options, name)}" for name in ("count", "size")]
    if options.serve:
        use_cores(CORES)
        local, _, url = options.serve.partition(" ")
        with uploaded(Path(local), url) if url != local else contextlib.nullcontext(local) as root:
            serve(make_side(root, LAYOUTS[options.layout], options.size, options.count), warm_ups=1)
        return
    conditions = Conditions(CORES)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_layouts(list_images(options.root, options.count), folder)
        urls = [url.rstrip("/") for url in options.buckets.split(",") if url]
        stores = {url: (url, {}) for url in urls} or stack.enter_context(emulated())
        commands = {}
        for layout in LAYOUTS:
            local = str(folder / layout)
            for store, (url, environment) in {"local": ("", {}), **stores}.items():
                copy = f"{url}/object_stores-benchmark/{layout}" if url else local
                arguments = [f"--serve={local} {copy}", f"--layout={layout}", *settings]
                commands[f"{store} {layout}"] = (["benchmarks.object_stores", *arguments], environment)
        sides = stack.enter_context(start_sides(commands))
        seconds = alternate(sides, options.rounds, conditions)
    print_times(seconds, options.count, "images/s")
    print_result("object_stores", make_cells(seconds, options.count), "images/s", conditions)


if __name__ == "__main__":
    main()

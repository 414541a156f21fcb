"""Other libraries' pipelines, from JPEG files to batches of square images, for `benchmarks.input_pipeline`.

    python -m benchmarks.peers.image_loaders --kind=tf --mode=crop --root=FOLDER --count=400 --size=224 --batch=32

Runs one of `KINDS` as a child process of a benchmark; see `benchmarks.alternate.serve`. Each pipeline uses its fastest
settings and has the same output as ours, antialiased 8-bit RGB squares. The exceptions are `tf-aliased`, which does not
antialias, and `bare-decode`, which does not resize.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.alternate import serve

RESIZE_MODES = ("stretch", "crop")
# Decoder (torchvision's or Pillow's) and number of worker processes.
TORCH_KINDS = {
    f"torch-{decoder}-{workers}": (decoder, workers) for decoder in ("torchvision", "pillow") for workers in (0, 2)
}
KINDS = ("tf", "tf-aliased", *TORCH_KINDS, "bare", "bare-decode")


def make_tf_data_loader(paths: list[str], size: int, mode: str, batch: int, antialias: bool) -> Callable[[], int]:
    """Returns a loader that uses tf.data.

    In mode "stretch", it decodes at half size under the same condition as our pipeline. In mode "crop", it decodes only
    the square.
    """
    import tensorflow as tf

    def load(path: Any) -> Any:
        data = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(data)
        height, width = shape[0], shape[1]
        side = tf.minimum(height, width)

        def decode(ratio: int) -> Any:
            return tf.image.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_FAST")

        if mode == "crop":
            window = [(height - side) // 2, (width - side) // 2, side, side]
            image = tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_FAST")
        else:
            image = tf.cond(16 * side >= 15 * 2 * size, lambda: decode(2), lambda: decode(1))
        image = tf.image.resize(image, (size, size), antialias=antialias)  # bilinear, which is faster than bicubic
        return tf.cast(tf.round(image), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(paths)
    batches = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(2)
    return lambda: sum(len(images) for images in batches.as_numpy_iterator())


def make_torch_loader(
    paths: list[str], size: int, mode: str, batch: int, decoder: str, workers: int
) -> Callable[[], int]:
    """Returns a loader that uses PyTorch's DataLoader.

    The decoder "torchvision" also resizes with torchvision, and "pillow" with Pillow.
    """
    import torch
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    resize = [v2.Resize((size, size))] if mode == "stretch" else [v2.Resize(size), v2.CenterCrop(size)]
    transform = v2.Compose([*resize, v2.PILToTensor()] if decoder == "pillow" else resize)

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            if decoder == "torchvision":
                return transform(decode_jpeg(read_file(paths[index]), mode=ImageReadMode.RGB))
            with Image.open(paths[index]) as image:
                image.draft("RGB", (size, size))
                return transform(image.convert("RGB"))

    def load_images() -> int:
        return sum(len(images) for images in torch.utils.data.DataLoader(Images(), batch, num_workers=workers))

    return load_images


def make_loop(paths: list[str], size: int, mode: str, resize: bool) -> Callable[[], int]:
    """Returns a loader without a pipeline: a loop that decodes at the scale of our pipeline and optionally resizes."""
    import simplejpeg

    from input_pipeline.resampling import choose_reduction_factor, resize_to_square

    def load_images() -> int:
        for path in paths:
            data = Path(path).read_bytes()
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            factor = choose_reduction_factor(width, height, size)
            pixels = simplejpeg.decode_jpeg(data, min_width=-(-width // factor), min_height=-(-height // factor))
            if resize:
                resize_to_square(pixels, size, mode, "bicubic")
        return len(paths)

    return load_images


def make_loader(kind: str, paths: list[str], size: int, mode: str, batch: int) -> Callable[[], int]:
    """Returns a function that loads all images once and returns their number."""
    if kind in TORCH_KINDS:
        return make_torch_loader(paths, size, mode, batch, *TORCH_KINDS[kind])
    if kind.startswith("tf"):
        return make_tf_data_loader(paths, size, mode, batch, antialias=kind == "tf")
    return make_loop(paths, size, mode, resize=kind == "bare")


def main() -> None:
    """Serves a loader as a child process of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--mode", choices=RESIZE_MODES, default="stretch")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    paths = list_images(options.root, options.count)
    load_images = make_loader(options.kind, paths, options.size, options.mode, options.batch)
    if (count := load_images()) != len(paths):
        raise AssertionError(f"{options.kind} loaded {count} of {len(paths)} images")
    serve(load_images, warm_ups=1)


def list_images(root: Path, count: int) -> list[str]:
    """Returns the paths of `count` JPEG files in a folder, repeating files if there are fewer.

    Raises:
        FileNotFoundError: The folder contains no JPEG files.
    """
    paths = sorted(str(path) for path in root.glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(f"no .jpg files in {root}: set --root to a folder of photographs")
    return [paths[index % len(paths)] for index in range(count)]


if __name__ == "__main__":
    main()

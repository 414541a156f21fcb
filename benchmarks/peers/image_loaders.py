"""Image loading with other libraries, from JPEG files to square batches, for `benchmarks.input_pipeline`.

    python -m benchmarks.peers.image_loaders --kind=tf-crop --root=FOLDER --count=400 --size=224 --batch=32

Runs one of `KINDS` as one side of a comparison; see `benchmarks.alternate.serve`. Each produces the same output as our
pipeline, antialiased 8-bit RGB squares, unless its name contains `aliased`, and uses its fastest settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.alternate import serve

RESIZE_MODES = ("stretch", "crop")
# torchvision tensors and Pillow images, each in this process and with 2 workers.
TORCH = {f"torch-{decoder}-{workers}": (decoder, workers) for decoder in ("tensor", "pillow") for workers in (0, 2)}
KINDS = ("tf", "tf-aliased", *TORCH, "bare", "bare-decode")


def tf_data(paths: list[str], size: int, mode: str, batch: int, antialias: bool) -> Callable[[], int]:
    """tf.data. "stretch" decodes at half size when ours does, "crop" decodes only the square."""
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
        image = tf.image.resize(image, (size, size), antialias=antialias)  # bilinear, because bicubic is slower
        return tf.cast(tf.round(image), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(paths)
    batches = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(2)
    return lambda: sum(len(images) for images in batches.as_numpy_iterator())


def torch_loader(paths: list[str], size: int, mode: str, batch: int, decoder: str, workers: int) -> Callable[[], int]:
    """PyTorch's DataLoader, with torchvision's decoder and transforms (tensors) or Pillow's."""
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
            if decoder == "tensor":
                return transform(decode_jpeg(read_file(paths[index]), mode=ImageReadMode.RGB))
            with Image.open(paths[index]) as image:
                image.draft("RGB", (size, size))
                return transform(image.convert("RGB"))

    def work() -> int:
        return sum(len(images) for images in torch.utils.data.DataLoader(Images(), batch, num_workers=workers))

    return work


def bare_loop(paths: list[str], size: int, mode: str, resize: bool) -> Callable[[], int]:
    """A loop over the decoder, at the scale that our pipeline uses, and the resize."""
    import simplejpeg

    from input_pipeline.resampling import reduction_factor, to_square

    def work() -> int:
        for path in paths:
            data = Path(path).read_bytes()
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            factor = reduction_factor(width, height, size)
            pixels = simplejpeg.decode_jpeg(data, min_width=-(-width // factor), min_height=-(-height // factor))
            if resize:
                to_square(pixels, size, mode, "bicubic")
        return len(paths)

    return work


def loader(kind: str, paths: list[str], size: int, mode: str, batch: int) -> Callable[[], int]:
    """Returns a function that loads all images once and returns their number."""
    if kind in TORCH:
        return torch_loader(paths, size, mode, batch, *TORCH[kind])
    if kind.startswith("tf"):
        return tf_data(paths, size, mode, batch, antialias=kind == "tf")
    return bare_loop(paths, size, mode, resize=kind == "bare")


def main() -> None:
    """Runs one kind as one side of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--mode", choices=RESIZE_MODES, default="stretch")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    paths = recycled(options.root, options.count)
    work = loader(options.kind, paths, options.size, options.mode, options.batch)
    if (count := work()) != len(paths):
        raise AssertionError(f"{options.kind} loaded {count} of {len(paths)} images")
    serve(work, warm_ups=1)


def recycled(root: Path, count: int) -> list[str]:
    """Returns `count` paths of JPEG files in a folder, repeating them as needed.

    Raises:
        FileNotFoundError: The folder contains no JPEG files.
    """
    paths = sorted(str(path) for path in root.glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(f"no .jpg files in {root}: set --root to a folder of photographs")
    return [paths[index % len(paths)] for index in range(count)]


if __name__ == "__main__":
    main()

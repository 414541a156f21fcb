"""Images per second per core from JPEG files to uint8 batches, compared with tf.data and PyTorch's DataLoader.

    python -m benchmarks.input_pipeline [--root=FOLDER] [--modes=stretch] [--count=200] [--rounds=5] [--cells=peers]

`--cells=rates` runs the cells of `benchmarks.input_rates` instead, `--cells=prepared` those of
`benchmarks.prepared_input`, and `--cells=peers,rates` two of them. The peers require the bench extra. FOLDER contains
photographs (.jpg), which are repeated up to `--count`; the default is the development data next to the checkout. Each
implementation runs in a separate process, and the processes alternate. The benchmark measures CPU time, summed over all
threads and worker processes. It is more stable than wall time on a busy machine, and its inverse is the throughput per
core. All peers produce the same output as our pipeline: antialiased images of 224 x 224 pixels. One of them is a plain
loop around our decoder and resizer, without a pipeline. DataLoaders use their best number of workers.

The last line is JSON, and `ratio` is the lowest of all comparisons. The lines before it also list two variants with
different output: tf.data without antialiasing, and the decoder without the resize.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks import input_rates, prepared_input
from benchmarks.alternate import alternate, print_result, print_times, serve, start_sides
from benchmarks.conditions import Conditions
from benchmarks.input_rates import PHOTOGRAPHS, StubVocabulary
from benchmarks.peers.image_loaders import KINDS, RESIZE_MODES, TORCH_KINDS, list_images


def make_pipeline(paths: list[str], size: int, mode: str, batch: int) -> Callable[[], None]:
    """Returns a function that starts the pipeline's threads and loads all images once."""
    from caption_jax.config import default_config
    from input_pipeline.batches import eval_batches
    from input_pipeline.images import Preprocessing
    from input_pipeline.prefetch import prefetch_to_device
    from input_pipeline.records import Record, Split

    data = default_config().data
    data.eval_batch_size = batch
    split = Split("train", [Record(Path(path), ("",), index) for index, path in enumerate(paths)])

    def load_images() -> None:
        batches = eval_batches(split, Preprocessing(size, mode), StubVocabulary(), data)
        count = sum(int(batch["mask"].sum()) for batch in prefetch_to_device(batches, None, data.prefetch))
        if count != len(paths):
            raise AssertionError(f"loaded {count} of {len(paths)} images")

    return load_images


def measure_rates(mode: str, options: argparse.Namespace, conditions: Conditions) -> dict[str, float]:
    """Returns the images per second of CPU time of our pipeline and of all peers."""
    flags = [f"--mode={mode}", *(f"--{name}={getattr(options, name)}" for name in ("root", "count", "size", "batch"))]
    arguments = {"ours": ["benchmarks.input_pipeline", "--serve", *flags]}
    arguments |= {kind: ["benchmarks.peers.image_loaders", f"--kind={kind}", *flags] for kind in KINDS}
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    with start_sides({name: (command, environment) for name, command in arguments.items()}) as sides:
        seconds = alternate(sides, options.rounds, conditions)
    print_times(seconds, options.count, "images/s", f"{mode:6} ")
    return {name: options.count / times.cpu for name, times in seconds.items()}


def select_peers(rates: dict[str, float]) -> dict[str, float]:
    """Returns the rates of the peers with the same output as ours, each with its best number of workers."""
    torch = {
        f"torch {decoder}": max(rates[kind] for kind, (name, _) in TORCH_KINDS.items() if name == decoder)
        for decoder in ("tensor", "pillow")
    }
    return {"tf.data": rates["tf"], **torch, "bare loop": rates["bare"]}


def compare_with_peers(options: argparse.Namespace, conditions: Conditions) -> dict[str, dict[str, float]]:
    """Prints the rates of all pipelines in the modes `options.modes`, and returns the comparisons."""
    comparisons = {}
    for mode in options.modes.split(","):
        rates = measure_rates(mode, options, conditions)
        for name, rate in rates.items():
            print(f"{mode:6} {name:15} {rate:6.0f} images/s per core, {1e3 / rate:.2f} ms", flush=True)
        for name, rate in select_peers(rates).items():
            comparisons[f"{mode}, {name}"] = {"ours": rates["ours"], "peer": rate, "ratio": rates["ours"] / rate}
    return comparisons


def main() -> None:
    """Runs the benchmark, or our implementation as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--modes", default="stretch")
    parser.add_argument("--mode", choices=RESIZE_MODES, default="stretch", help="resize mode if --serve is set")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", default="peers", help='some of "peers,rates,prepared"')
    parser.add_argument("--serve", action="store_true", help="run as a child process")
    options = parser.parse_args()
    paths = list_images(options.root, options.count)
    if options.serve:
        serve(make_pipeline(paths, options.size, options.mode, options.batch))
        return
    conditions, comparisons = Conditions(), {}
    if "peers" in options.cells:
        comparisons |= compare_with_peers(options, conditions)
    if "rates" in options.cells:
        cells = input_rates.measure_rates(options, list(input_rates.KINDS), conditions)
        input_rates.print_cells(cells)
        comparisons |= cells
    if "prepared" in options.cells:
        comparisons |= prepared_input.measure_prepared(options, conditions)
    print_result("input_pipeline", comparisons, "images/s/core", conditions)


if __name__ == "__main__":
    main()

"""Requests per second and latency of `caption-jax serve` on loopback, compared with two other servers.

    python -m benchmarks.serving [--clients=32] [--seconds=8] [--rounds=5]

All servers caption JPEGs of 500 x 375 pixels with greedy decoding, 12 tokens per caption. `--clients` clients send one
image per request, and each waits for the answer before the next request. Servers are other processes, which answer in
turn in each round; the medians over rounds are reported.

ours: the model of `configs/flickr8k.py`, whose images share batches of up to 16.

batches of one: the same server with `--batch_sizes=1`.

transformers: generate() of an equally large model behind FastAPI (`benchmarks/peers/transformers_server.py`).

For both peers, `ratio` is that of the requests per second. The cells "p99 of ..." compare the 99th percentile of the
latency, in requests per second of a client that has this latency. In the cell "overload", requests arrive four times as
fast as our server answered them before. `ours` is the rate of its answers with 200 meanwhile, `peer` the rate before,
and `refused` the fraction that it answered with 429; any other answer is an error.

Requires the bench and the serve extras. The last line is JSON, and `ratio` is the lowest of all cells.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.alternate import print_result, use_cpu
from benchmarks.conditions import Conditions
from benchmarks.serving_load import Load, send_closed_loop, send_open_loop

TOKENS = 12  # per caption, like the mean of Flickr8k
OVERLOAD = 4  # times the rate that the server reaches
_WIDTH, _HEIGHT = 500, 375
_START_SECONDS = 600


def make_photograph() -> bytes:
    """Returns a JPEG with large and small structures, of about the size of a photograph of Flickr8k."""
    rng = np.random.default_rng(0)
    layers = [rng.uniform(0, 255, (_HEIGHT // scale + 1, _WIDTH // scale + 1, 3)) for scale in (96, 24, 6)]
    images = [Image.fromarray(layer.astype(np.uint8)).resize((_WIDTH, _HEIGHT), Image.BICUBIC) for layer in layers]
    buffer = io.BytesIO()
    Image.fromarray(np.mean(images, axis=0).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_model(workdir: Path) -> None:
    """Writes a workdir with random weights, whose captions all have `TOKENS` tokens."""
    from etils import epath

    from benchmarks.frozen_training import make_flickr8k_spec
    from benchmarks.reward_workload import make_split, make_vocabulary
    from caption_jax.runs.artifact import write_artifact, write_pointer
    from caption_jax.runs.description import ModelSettings, RunDescription
    from caption_jax.runs.initial_variables import init_variables
    from caption_jax.runs.weights import Weights
    from caption_jax.runs.workdir import write_description
    from input_pipeline.images import Preprocessing

    spec = make_flickr8k_spec()
    length = TOKENS + 2  # <s> and </s>
    decode = dataclasses.replace(spec.decode, max_length=length, min_length=length)
    vocabulary = make_vocabulary(make_split(1000))
    settings = ModelSettings(vocabulary.size, spec.data.max_length, {"padding": "same", "norm_epsilon": 1e-3})
    description = RunDescription(
        dataclasses.replace(spec, decode=decode), settings, Preprocessing(spec.data.image_size), vocabulary
    )
    folder = epath.Path(workdir)
    write_description(folder, description)
    import jax

    variables = jax.tree.map(np.asarray, init_variables(description))
    write_pointer(folder, write_artifact(folder, description, Weights(variables, 0)))


@contextlib.contextmanager
def start_server(arguments: list[str]) -> Iterator[int]:
    """Starts `python -m ARGUMENTS --port=PORT`, waits until it is ready, and yields the port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    log = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-m", *arguments, f"--port={port}"], stdout=log, stderr=log)
    try:
        start = time.perf_counter()
        while not _is_ready(port):
            if process.poll() is not None or time.perf_counter() - start > _START_SECONDS:
                raise RuntimeError(f"{' '.join(arguments)} is not ready (exit status {process.poll()})")
            time.sleep(0.2)
        print(f"{arguments[0]} {arguments[-1]}: ready after {time.perf_counter() - start:.0f} s", flush=True)
        yield port
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def compare(ours: list[Load], peer: list[Load]) -> dict[str, dict[str, float]]:
    """Returns the cells of the rate and of the 99th percentile of one peer."""
    rates = [statistics.median(load.rate for load in loads) for loads in (ours, peer)]
    percentiles = {
        f"{side}_p{percent}_ms": statistics.median(load.percentile(percent) for load in loads)
        for side, loads in (("ours", ours), ("peer", peer))
        for percent in (50, 99)
    }
    tails = [1e3 / percentiles[f"{side}_p99_ms"] for side in ("ours", "peer")]
    return {
        "{}": {"ours": rates[0], "peer": rates[1], "ratio": rates[0] / rates[1], **percentiles},
        "p99 of {}": {"ours": tails[0], "peer": tails[1], "ratio": tails[0] / tails[1]},
    }


def check_statuses(load: Load, allowed: set[int]) -> None:
    """Raises RuntimeError if a server gave another answer."""
    if set(load.statuses) - allowed or not load.latencies:
        raise RuntimeError(f"the server answered with {dict(load.statuses)}")


def measure(ports: dict[str, int], options: argparse.Namespace, conditions: Conditions) -> dict[str, list[Load]]:
    """Measures the servers in turn; returns their loads by name, one per round, and those of "overload"."""
    image = make_photograph()
    loads: dict[str, list[Load]] = {name: [] for name in (*ports, "overload")}
    for port in ports.values():
        send_closed_loop(port, image, options.clients, 2)
    with conditions.measured():
        for _ in range(options.rounds):
            for name, port in ports.items():
                load = send_closed_loop(port, image, options.clients, options.seconds)
                check_statuses(load, {200})
                loads[name].append(load)
            rate = OVERLOAD * loads["ours"][-1].rate
            load = send_open_loop(ports["ours"], image, 4 * options.clients, options.seconds, rate)
            check_statuses(load, {200, 429})
            loads["overload"].append(load)
    return loads


def describe_overload(ours: list[Load], overload: list[Load]) -> dict[str, float]:
    """Returns the cell of the overload."""
    rates = [statistics.median(load.rate for load in loads) for loads in (overload, ours)]
    refused = [load.statuses[429] / load.statuses.total() for load in overload]
    tail = statistics.median(load.percentile(99) for load in overload)
    ratio = {"ours": rates[0], "peer": rates[1], "ratio": rates[0] / rates[1]}
    return {**ratio, "ours_p99_ms": tail, "refused": statistics.median(refused)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8, help="seconds per server and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    use_cpu()
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.environ["XDG_CACHE_HOME"] = folder
        workdir = Path(folder) / "run"
        write_model(workdir)
        ours = ["caption_jax", "serve", f"--workdir={workdir}"]
        commands = {
            "ours": ours,
            "batches of one": [*ours, "--batch_sizes=1"],
            "transformers": ["benchmarks.peers.transformers_server", f"--tokens={TOKENS}"],
        }
        ports = {name: stack.enter_context(start_server(arguments)) for name, arguments in commands.items()}
        loads = measure(ports, options, conditions)
    cells = {}
    for peer in ("batches of one", "transformers"):
        cells |= {name.format(peer): cell for name, cell in compare(loads["ours"], loads[peer]).items()}
    cells["overload"] = describe_overload(loads["ours"], loads["overload"])
    for name, cell in cells.items():
        print(f"{name:24}{', '.join(f'{key} {value:.3g}' for key, value in cell.items())}")
    print_result("serving", cells, "requests/s", conditions)


if __name__ == "__main__":
    main()

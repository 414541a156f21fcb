"""Captions per second of beam search, compared with transformers' `generate` (PyTorch) for equal model dimensions.

    python -m benchmarks.decode [--sizes=flickr8k,coco] [--batches=1,16,64] [--beams=5] [--tokens=20] [--rounds=5]

Requires the bench extra. The peer is a `VisionEncoderDecoderModel` with GPT-2 and cross-attention as the decoder. Like
our decoder, it has pre-norm layers, tied embeddings, learned positions and a key/value cache. Both decode from the same
memory of 49 positions in float32. Their weights are random and never produce </s>, so every step is executed. Each
implementation runs in a separate process, ours with the settings of main.py. The processes alternate; in each round, a
process decodes the batch twice and the second pass is timed. The peer uses one thread or one per core, whichever is
faster in a trial in its process; a single thread is faster if steps are short. The time of each part of our beam search
is printed as well, measured in a third process.

The last line is JSON, and `ratio` is the lowest of all cells. A cell contains the ratios of wall time (`ratio`) and CPU
time (`cpu_ratio`). `utilisation` is our FLOP/s divided by the peak of matrix products, which is measured in the same
rounds; `count_flops` in `benchmarks/decode_workload.py` says what is counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks.alternate import Command, alternate, compare, print_result, print_times, serve, start_sides, use_cpu
from benchmarks.conditions import Conditions
from benchmarks.decode_workload import SIZES, Workload, count_flops
from benchmarks.peak import make_product_commands, print_utilisation, split_peak
from caption_jax.runtime.process import MALLOC_SETTINGS, set_up_process


def make_flags(workload: Workload) -> list[str]:
    """Returns the flags that select a workload, for both sides."""
    return [f"--batches={workload.batch}", f"--beams={workload.beams}", f"--tokens={workload.tokens}"]


def make_commands(name: str, workload: Workload) -> dict[str, Command]:
    """Returns the commands that start our implementation, the peer and the matrix products.

    Args:
        name: Model size.
        workload: What to decode.
    """
    flags = make_flags(workload)
    return {
        "ours": (["benchmarks.decode", f"--serve={name}", *flags], MALLOC_SETTINGS),
        "peer": (["benchmarks.peers.transformers_captioner", f"--size={name}", *flags], {}),
        **make_product_commands(),
    }


def measure(name: str, workload: Workload, rounds: int, conditions: Conditions) -> dict[str, float]:
    """Prints and returns the results of a cell.

    Returns:
        The comparison, see `benchmarks.alternate.compare`, with the CPU milliseconds per caption of both sides, the
        number of threads of the peer, and our utilisation.
    """
    label = f"{name}, batch {workload.batch}"
    with start_sides(make_commands(name, workload)) as sides:
        peer_threads = sides["peer"].threads
        seconds, peak = split_peak(alternate(sides, rounds, conditions))
    print_times(seconds, workload.batch, "captions/s", f"{label}, ")
    utilisation = print_utilisation(label, count_flops(SIZES[name], workload), seconds["ours"].wall, peak)
    cpu_ms = {f"{side}_cpu_ms": 1e3 * elapsed.cpu / workload.batch for side, elapsed in seconds.items()}
    comparison = compare(seconds, workload.batch)["peer"]
    print(f"{label}: ratio {comparison['ratio']:.2f}, CPU time {comparison['cpu_ratio']:.2f}", flush=True)
    return {"peer_threads": peer_threads, **comparison, **cpu_ms, "utilisation": utilisation}


def print_parts(name: str, workload: Workload, rounds: int) -> None:
    """Prints the time of each part of our beam search, measured in a child process with the settings of main.py."""
    command = ["-m", "benchmarks.decode", f"--serve={name}", "--parts", f"--rounds={rounds}", *make_flags(workload)]
    subprocess.run([sys.executable, *command], env={**os.environ, **MALLOC_SETTINGS}, check=True)


def serve_ours(name: str, workload: Workload, parts_rounds: int | None) -> None:
    """Runs our implementation as a child process.

    Args:
        name: Model size.
        workload: What to decode.
        parts_rounds: Number of times that each part is timed; None to serve the timing of complete passes.
    """
    set_up_process()  # like main.py; the environment of this process contains MALLOC_SETTINGS
    from benchmarks.our_beam_search import OurBeamSearch, time_parts

    ours = OurBeamSearch(SIZES[name], workload)
    if parts_rounds is None:
        serve(ours.run, untimed_runs=1)
        return
    ours.run()
    parts = time_parts(ours, SIZES[name], parts_rounds)
    print("    per batch:", ", ".join(f"{part} {ms:.1f} ms" for part, ms in parts.items()), flush=True)


def main() -> None:
    """Runs the benchmark, or our implementation as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="flickr8k,coco")
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--serve",
        default="",
        choices=["", *SIZES],
        help="run as a child process that decodes with this model size and the first of --batches",
    )
    parser.add_argument("--parts", action="store_true", help="with --serve, print the time of each part instead")
    options = parser.parse_args()
    workloads = [Workload(int(batch), options.beams, options.tokens) for batch in options.batches.split(",")]
    if options.serve:
        serve_ours(options.serve, workloads[0], options.rounds if options.parts else None)
        return
    use_cpu()
    conditions, comparisons = Conditions(), {}
    for name in options.sizes.split(","):
        for workload in workloads:
            label = f"{name}, batch {workload.batch}"
            comparisons[label] = measure(name, workload, options.rounds, conditions)
            print_parts(name, workload, options.rounds)
    print_result("decode", comparisons, "captions/s", conditions)


if __name__ == "__main__":
    main()

"""Time on the device of each part and operation of our training step.

    python -m benchmarks.accelerator.profile_step --task=train --scale=full --dtype=bfloat16 --trace=FOLDER

Prints JSON: milliseconds per step by part of the model, the slowest operations, and the fraction of time in which the
device computes. Command buffers (CUDA graphs) are disabled, because a trace does not name the operations inside them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from caption_jax.planning.model_parts import find_part, is_backward

COPY = re.compile(r"^(copy|transpose|wrapped_transpose|input_transpose|wrapped_copy|.*transpose_fusion|.*copy_fusion)")


def name_part(path: str) -> str:
    """Returns the part of the step that an operation belongs to, and its pass."""
    return f"{find_part(path)}, backward" if is_backward(path) else find_part(path)


def read_paths(text: str) -> dict[str, str]:
    """Returns the path (`op_name`) of each instruction in the text of a compiled program."""
    pattern = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.MULTILINE)
    return dict(pattern.findall(text))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Returns the events of compiled operations in a Perfetto trace, only those on the accelerator if there is one."""
    (path,) = folder.rglob("perfetto_trace.json.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    names = {
        event["pid"]: event["args"].get("name", "")
        for event in events
        if event.get("ph") == "M" and event.get("name") == "process_name"
    }
    accelerator_pids = {pid for pid, name in names.items() if re.search(r"/device:(GPU|TPU)", name)}
    return [
        event
        for event in events
        if event.get("ph") == "X"
        and (event["pid"] in accelerator_pids if accelerator_pids else "hlo_op" in event.get("args", {}))
    ]


def summarise(events: list[dict[str, Any]], paths: dict[str, str], steps: int, seconds: float) -> dict[str, Any]:
    """Sums the durations of events by part and by operation.

    Args:
        events: events of a trace, with durations in microseconds.
        paths: path of each operation.
        steps: number of steps in the trace.
        seconds: wall time of these steps.
    """
    parts, operations, kernels = Counter(), Counter(), defaultdict(Counter)
    copies = 0.0
    for event in events:
        arguments = event.get("args", {})
        operation = arguments.get("hlo_op", event["name"])
        milliseconds = event["dur"] / 1e3 / steps
        parts[name_part(paths.get(operation, ""))] += milliseconds
        operations[operation] += milliseconds
        kernels[operation][event["name"]] += milliseconds
        copies += milliseconds if COPY.match(operation) else 0.0
    busy = sum(parts.values())
    return {
        "wall_ms": 1e3 * seconds / steps,
        "device_ms": busy,
        "busy_fraction": busy * steps / seconds / 1e3,
        "copy_ms": copies,
        "parts_ms": {name: round(value, 4) for name, value in parts.most_common()},
        "operations": [
            {
                "operation": name,
                "ms": round(value, 4),
                "kernel": kernels[name].most_common(1)[0][0][:120],
                "path": paths.get(name, ""),
            }
            for name, value in operations.most_common(60)
        ],
    }


def main() -> None:
    """Traces the training step and prints the summary."""
    flags = os.environ.get("XLA_FLAGS", "")
    from benchmarks.accelerator import our_side

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    our_side.add_flags(parser)
    parser.add_argument("--trace", type=Path, required=True)
    options = parser.parse_args()
    import jax

    if jax.default_backend() == "gpu" and "command_buffer" not in flags:
        raise SystemExit("set XLA_FLAGS=--xla_gpu_enable_command_buffer=")
    workload = our_side.SCALES[options.scale]
    spec = our_side.make_spec(workload, options.dtype, options.packing, options.ops)
    training = our_side.Training(workload, spec, workload.make_batch())
    for _ in range(3):
        jax.block_until_ready(training.step())
    with jax.profiler.trace(options.trace, create_perfetto_trace=True):
        start = time.perf_counter()
        for _ in range(workload.steps):
            loss = training.step()
        jax.block_until_ready(loss)
        seconds = time.perf_counter() - start
    text = training.compiled.as_text()
    (options.trace / "program.txt").write_text(text)
    print(json.dumps(summarise(read_events(options.trace), read_paths(text), workload.steps, seconds)))


if __name__ == "__main__":
    main()

"""The cells of the benchmark. Each is a function of the command's options that returns its results as JSON values.

ceilings            FLOP/s, memory bandwidth and transfer rates of the device, measured with minimal programs
operations          time of alternative implementations of single operations
train_bf16, ...     updates of all parameters; 5 captions per image, padded to 40 tokens
train_blocks_bf16, ...   the same batch in blocks of tokens, as in a run on this device (config.train.packing="blocks")
train_packed_bf16   the same batch without padding
train_reference_ops_bf16   the same batch with the reference implementations of all operations
encoder_bf16, ...   forward pass of EfficientNet-B0 with stored statistics
greedy_bf16, ...    decoding of 20 tokens with 1 or 5 hypotheses per image
numerics            losses of 200 updates on the device and on the CPU
profile             time on the device of each part of the training step
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator.workload import SCALES
from benchmarks.alternate import alternate, compare, start_sides
from benchmarks.conditions import Conditions

# The processes of a cell share the device's memory.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
DTYPES = {"bf16": "bfloat16", "f32": "float32"}


class MissingPackageError(Exception):
    """A package that a cell requires is not installed."""


def measure_side_by_side(
    task: str, dtype: str, flags: Sequence[str], is_peer_compiled: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """Alternates our implementation of a task with PyTorch's.

    Returns:
        Images per second of both, statistics of our compiled program, and the conditions of the host.
    """
    arguments = [f"--task={task}", f"--scale={options.scale}", f"--dtype={DTYPES[dtype]}"]
    required = ["torch", "transformers" if task in ("greedy", "beam") else "torchvision"]
    missing = [name for name in required if importlib.util.find_spec(name) is None]
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as folder:
        statistics = Path(folder) / "statistics.json"
        ours = ["benchmarks.accelerator.our_side", *arguments, *flags, f"--statistics={statistics}"]
        commands = {"ours": (ours, get_environment(options))}
        if not missing:
            name = "torch_compile" if is_peer_compiled else "torch"
            peer_flags = ["--compile"] if is_peer_compiled else []
            commands[name] = (["benchmarks.accelerator.torch_side", *arguments, *peer_flags], {})
        with start_sides(commands) as sides:
            seconds = alternate(sides, options.rounds, conditions)
        result = json.loads(statistics.read_text())
    workload = SCALES[options.scale]
    is_decoding = task in ("greedy", "beam")
    images = workload.decoded_images if is_decoding else workload.images * workload.steps
    result |= {
        "images": images,
        "images_per_step": workload.images,
        "seconds": {name: times.wall for name, times in seconds.items()},
    }
    result |= {"ours": images / seconds["ours"].wall, "comparisons": compare(seconds, images)}
    report = conditions.report()  # `device` is the accelerator
    result |= {"host": report["device"], "conditions": report["conditions"], "final": report["final"]}
    return result | ({"skipped_peers": f"needs {', '.join(missing)}"} if missing else {})


def get_environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns the environment variables of our processes, which share compiled programs and autotuning results."""
    return {"JAX_COMPILATION_CACHE_DIR": str(options.out / "programs"), **ENVIRONMENT}


def start_module(module: str, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a module that prints JSON as its last line."""
    command = [sys.executable, "-m", f"benchmarks.accelerator.{module}", *arguments]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


def read_result(process: subprocess.Popen) -> dict[str, Any]:
    """Waits for a process and returns its JSON."""
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args[2:])} exited with status {process.returncode}")
    return json.loads(output.splitlines()[-1])


def measure_ceilings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the limits of the device."""
    return read_result(start_module("ceilings", [f"--scale={options.scale}"], get_environment(options)))


def compare_operations(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the times of alternative implementations of single operations, in milliseconds."""
    return read_result(start_module("operations", [f"--scale={options.scale}"], get_environment(options)))


def compare_losses(options: argparse.Namespace) -> dict[str, Any]:
    """Trains on the CPU in float32 and on the device in three precisions, and compares the losses."""
    steps = 200 if options.scale == "full" else 8
    scale = [f"--scale={options.scale}", f"--steps={steps}"]
    variants = {
        "float32, highest precision": ["--dtype=float32", "--precision=highest"],
        "float32": ["--dtype=float32"],
        "bfloat16": ["--dtype=bfloat16"],
    }
    on_cpu = start_module("numerics", [*scale, *variants["float32, highest precision"]], {"JAX_PLATFORMS": "cpu"})
    results = {
        name: read_result(start_module("numerics", [*scale, *flags], get_environment(options)))
        for name, flags in variants.items()
    }
    reference = np.asarray(read_result(on_cpu)["losses"])
    rows = {"CPU, float32, highest precision": summarise_losses(reference, reference)}
    rows |= {name: summarise_losses(np.asarray(result["losses"]), reference) for name, result in results.items()}
    return {"platform": results["bfloat16"]["platform"], "steps": steps, "losses": rows}


def summarise_losses(losses: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compares a loss curve with that of the CPU: the first step, and means of windows of a tenth of the run."""
    window = max(len(losses) // 10, 1)
    means, expected = (
        curve[: len(curve) // window * window].reshape(-1, window).mean(1) for curve in (losses, reference)
    )
    return {
        "first": float(losses[0]),
        "first_relative_error": float(abs(losses[0] / reference[0] - 1)),
        "last_window": float(means[-1]),
        "largest_relative_error_of_windows": float(np.max(np.abs(means / expected - 1))),
    }


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the time on the device of each part of the training step in bfloat16."""
    trace = options.out / "trace"
    arguments = ["--task=train", f"--scale={options.scale}", "--dtype=bfloat16", f"--trace={trace}"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer=".strip()
    return read_result(start_module("profile_step", arguments, {**get_environment(options), "XLA_FLAGS": flags}))


def _cell(task: str, dtype: str, *flags: str, is_peer_compiled: bool = False) -> Callable[[argparse.Namespace], dict]:
    return functools.partial(measure_side_by_side, task, dtype, flags, is_peer_compiled)


CELLS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ceilings": measure_ceilings,
    "operations": compare_operations,
    "train_bf16": _cell("train", "bf16"),
    "train_bf16_compiled": _cell("train", "bf16", is_peer_compiled=True),
    "train_f32": _cell("train", "f32"),
    "train_blocks_bf16": _cell("train", "bf16", "--packing=blocks"),
    "train_blocks_f32": _cell("train", "f32", "--packing=blocks"),
    "train_packed_bf16": _cell("train", "bf16", "--packing=always"),
    "train_reference_ops_bf16": _cell("train", "bf16", "--ops=reference"),
    "encoder_bf16": _cell("encoder", "bf16"),
    "encoder_bf16_compiled": _cell("encoder", "bf16", is_peer_compiled=True),
    "encoder_f32": _cell("encoder", "f32"),
    "greedy_bf16": _cell("greedy", "bf16"),
    "beam_bf16": _cell("beam", "bf16"),
    "beam_f32": _cell("beam", "f32"),
    "numerics": compare_losses,
    "profile": profile,
}

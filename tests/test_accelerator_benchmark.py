"""The benchmark for accelerators: its summaries, and all of its cells on a CPU with a small model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.__main__ import summarise as summarise_cells
from benchmarks.accelerator.cells import CELLS, summarise_losses
from benchmarks.accelerator.our_side import Training, make_spec
from benchmarks.accelerator.page import make_page
from benchmarks.accelerator.profile_step import name_part, read_paths, summarise
from benchmarks.accelerator.workload import SCALES

ROOT = Path(__file__).resolve().parents[1]
# Variables that tests/conftest.py sets: simulated devices, and no PyTorch in transformers.
TEST_VARIABLES = {"XLA_FLAGS", "USE_TORCH", "USE_TF"}
PROGRAM = """
  %fusion.1 = f32[4]{0} fusion(%x), metadata={op_name="jit(step)/jvp(encode)/image_encoder/backbone/stem/conv/conv"}
  ROOT %fusion.2 = f32[4]{0} fusion(%y), metadata={op_name="jit(step)/transpose(jvp(decode))/layer_0/feed_forward/dot"}
  %copy.3 = f32[4]{0} copy(%z)
"""


def test_operations_are_assigned_to_parts_by_their_path():
    paths = read_paths(PROGRAM)
    assert name_part(paths["fusion.1"]) == "encoder, stem"
    assert name_part(paths["fusion.2"]) == "feed-forward, backward"
    assert "copy.3" not in paths


def test_the_profile_sums_durations_per_step():
    events = [
        {"name": "kernel", "dur": 3000.0, "args": {"hlo_op": "fusion.1"}},
        {"name": "kernel", "dur": 1000.0, "args": {"hlo_op": "fusion.1"}},
        {"name": "memcpy", "dur": 2000.0, "args": {"hlo_op": "copy.3"}},
    ]
    summary = summarise(events, read_paths(PROGRAM), steps=2, seconds=0.012)
    assert summary["parts_ms"] == {"encoder, stem": 2.0, "other": 1.0}
    assert summary["copy_ms"] == 1.0
    assert summary["busy_fraction"] == pytest.approx(0.5)
    assert summary["operations"][0]["operation"] == "fusion.1"


def test_loss_curves_are_compared_by_their_means_over_a_tenth_of_the_run():
    reference = np.linspace(5, 1, 40)
    losses = reference.copy()
    losses[-4:] *= 1.1
    row = summarise_losses(losses, reference)
    assert row["first_relative_error"] == 0
    assert row["largest_relative_error_of_windows"] == pytest.approx(0.1)


def test_captions_contain_their_tokens_and_padding():
    batch = SCALES["small"].make_batch()
    lengths = (batch["tokens"] != 1).sum(-1)
    ends = np.take_along_axis(batch["tokens"], lengths[..., None] - 1, -1)
    assert (batch["tokens"][..., 0] == 0).all()
    assert (ends == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_captions_give_the_loss_of_padded_captions(dtype):
    workload = SCALES["small"]
    losses = {}
    for packing in ("never", "blocks"):
        spec = make_spec(workload, dtype, packing)
        spec = dataclasses.replace(
            spec,
            model=dataclasses.replace(
                spec.model, memory_dropout=0.0, decoder=dataclasses.replace(spec.model.decoder, dropout=0.0)
            ),
        )
        training = Training(workload, spec, workload.make_batch())
        assert ("segment_ids" in training.batch) == (packing == "blocks")
        losses[packing] = float(training.step())
    assert losses["blocks"] == pytest.approx(losses["never"], rel=1e-5 if dtype == "float32" else 1e-3)


def test_a_failed_cell_fails_the_command(monkeypatch, tmp_path, capsys):
    def fail(options):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(CELLS, "ceilings", fail)
    monkeypatch.setitem(CELLS, "profile", lambda options: {"skipped": "not needed"})
    monkeypatch.setattr(sys, "argv", ["accelerator", f"--out={tmp_path}", "--cells=ceilings,profile"])
    with pytest.raises(SystemExit, match="failed: ceilings"):
        main()
    assert "out of memory" in (tmp_path / "page.md").read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "accelerator"


def test_the_page_names_cells_without_results():
    page = make_page({"cells": {"beam_bf16": {"error": "out of memory"}, "profile": {"skipped": "needs jax"}}})
    assert "`beam_bf16`: out of memory" in page
    assert "`profile`: needs jax" in page


def test_cells_measured_on_a_busy_host_are_not_final():
    comparison = {"ours": 3.0, "peer": 2.0, "ratio": 1.5}
    idle = {"comparisons": {"torch": comparison}, "final": True, "conditions": {"other_processes": 0.02}}
    busy = idle | {"final": False, "conditions": {"other_processes": 0.31}}
    assert summarise_cells({"cells": {"encoder_f32": idle}})["final"] is True
    assert summarise_cells({"cells": {"encoder_f32": idle, "train_f32": busy}})["final"] is False
    assert summarise_cells({"cells": {"encoder_f32": {"comparisons": {"torch": comparison}}}})["final"] is None
    assert "`train_f32`: 31%" in make_page({"cells": {"train_f32": busy}})


@pytest.mark.long
def test_all_cells_run_on_a_cpu(tmp_path):
    # Cells that differ from another one only in the dtype or the compilation of the peer are left out.
    names = [name for name in CELLS if not name.endswith(("_f32", "_compiled"))]
    flags = [f"--out={tmp_path}", "--scale=small", "--rounds=1", f"--cells={','.join(names)}"]
    command = [sys.executable, "-m", "benchmarks.accelerator", *flags]
    environment = {key: value for key, value in os.environ.items() if key not in TEST_VARIABLES}
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert list(cells) == names
    assert {name: cell["error"] for name, cell in cells.items() if "error" in cell} == {}, output.stderr
    assert cells["train_bf16"]["ours"] > 0
    assert 0 <= cells["train_bf16"]["conditions"]["other_processes"] <= 1
    assert cells["train_blocks_bf16"]["ours"] > 0
    assert cells["numerics"]["losses"]["bfloat16"]["largest_relative_error_of_windows"] < 0.01
    operations = cells["operations"]["operations"]
    failed = {name for times in operations.values() for name, time in times.items() if isinstance(time, str)}
    assert failed == {"jax.nn, cudnn"}
    assert "self-attention" in cells["profile"]["parts_ms"]
    assert json.loads(output.stdout.splitlines()[-1])["name"] == "accelerator"
    assert "Losses of" in (tmp_path / "page.md").read_text()

"""The table of a plan, for chips that are not attached."""

from __future__ import annotations

import dataclasses

import pytest

from caption_jax.planning.chips import CHIPS, Chip
from caption_jax.planning.table import print_plan


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_the_specification_of_each_chip_is_printed(chip: Chip, capsys):
    result = {
        "topology": f"{chip.name}:2x2",
        "chips": 4,
        "mesh": {"data": 4, "model": 1},
        "dtype": "bfloat16",
        "chip": dataclasses.asdict(chip),
        "assumed": {"vocabulary": 290},
        "phase": {"from_step": 0, "starts": [0]},
        "parameters": {"all": 7_130_000, "trained": 4_000_000},
        "programs": {},
    }
    print_plan(result)
    output = capsys.readouterr().out
    assert f"{chip.name}:2x2: 4 devices (4 data x 1 model), bfloat16" in output
    assert "B/s, " in output and "links " in output and chip.source in output
    assert "7.13 M" in output

"""Runs whose processes are killed and terminated at random times give the results of undisturbed runs.

python -m pytest -n 0 -s -m long tests/long/test_kills.py --kills=100
"""

from __future__ import annotations

import pytest
from killed_runs import SUBJECTS, kill_at_random

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", SUBJECTS)
def test_randomly_killed_runs_give_the_results_of_undisturbed_runs(launcher, get_option, tmp_path, name):
    kills, seed = get_option("kills"), get_option("seed")
    print(kill_at_random(launcher, name, tmp_path, seed=seed, kills=kills, new_programs=4))

"""Results of an evaluation that were not known when the checkpoint of its step was written.

A run that is asked to stop during an evaluation abandons it, and saves a checkpoint whose records state that the
evaluation is due. The process that resumes the run repeats it first, and adds the result to the checkpoint in a file of
its own, `evaluation.json`. If that process is killed, the next one has the same records as if the evaluation had not
been interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from caption_jax.errors import WorkdirError
from input_pipeline.files import write_atomically

EVALUATION_DUE = "evaluation_due"  # record of a checkpoint
_FILE = "evaluation.json"


def add_result(checkpoint: epath.Path, records: Mapping[str, Any]) -> None:
    """Adds the records of a finished evaluation to a checkpoint, of which they replace those with the same names."""
    write_atomically(checkpoint / _FILE, json.dumps(dict(records)) + "\n")


def complete_records(checkpoint: epath.Path, records: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the records of a checkpoint with the results that were added to it.

    Raises:
        WorkdirError: the added results are damaged.
    """
    path = checkpoint / _FILE
    if not records.get(EVALUATION_DUE) or not path.exists():
        return dict(records)
    try:
        added = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged ({error}): delete it to repeat the evaluation") from error
    return {**records, **added, EVALUATION_DUE: False}

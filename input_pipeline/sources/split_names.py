"""Names of splits in public datasets."""

from __future__ import annotations

# External name -> ours. Karpathy's restval is part of the training split, as in all COCO papers.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}

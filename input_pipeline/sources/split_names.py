"""What data sets call their splits."""

from __future__ import annotations

# Their name -> ours. Karpathy's restval is trained on, as all papers on COCO do.
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

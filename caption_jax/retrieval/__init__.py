"""Image search by text or by image, with an on-disk index (docs/search.md)."""

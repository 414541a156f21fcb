"""Image search by text or by image: an on-disk index with exact search (docs/search.md)."""

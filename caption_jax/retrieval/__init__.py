"""Images found by words or by other images: an index on disk and exact search in it; see docs/search.md."""

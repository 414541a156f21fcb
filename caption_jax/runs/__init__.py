"""A run on disk: its spec and workdir, checkpoints, weights, and what they are loaded from."""

"""A run on disk: workdir, run description, checkpoints, model weights and loading."""

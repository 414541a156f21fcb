"""Training of captioning models."""

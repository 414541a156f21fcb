"""Captions and vectors for images, from a trained run."""

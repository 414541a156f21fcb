"""Captioning and embedding of images with a trained run."""

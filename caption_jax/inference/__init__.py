"""Captioning and embedding of images with the model of a trained run."""

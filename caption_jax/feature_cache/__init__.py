"""Cached outputs of a frozen part of the image encoder."""

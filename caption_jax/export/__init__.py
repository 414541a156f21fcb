"""Trained models in formats for other programs and other people."""

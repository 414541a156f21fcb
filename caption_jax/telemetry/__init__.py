"""Logs, metrics files, TensorBoard events, progress and profiles of training runs."""

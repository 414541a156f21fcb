"""Reporting during training: logs, metrics files, TensorBoard, progress and profiles."""

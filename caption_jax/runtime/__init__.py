"""Process environment, signals, and the disk cache of traced programs."""

"""Process environment, signals, and a disk cache of traced programs."""

"""Everything before the device: sources of captioned images, records, examples and batches of NumPy arrays."""

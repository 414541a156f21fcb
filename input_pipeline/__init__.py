"""The host side of the data pipeline: sources of captioned images, records, examples and batches of NumPy arrays."""

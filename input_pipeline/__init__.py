"""The host side of the data pipeline, from sources of captioned images to batches of NumPy arrays."""

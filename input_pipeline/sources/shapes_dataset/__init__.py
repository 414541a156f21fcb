"""A TFDS data set of rendered scenes with captions; see `builder.CaptionShapes`."""

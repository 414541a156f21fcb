"""A TFDS dataset of rendered scenes with captions; see `builder.CaptionShapes`."""

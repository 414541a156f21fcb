"""A cache of the outputs of frozen image encoder stages."""

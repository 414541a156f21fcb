"""Image backbones: from pixels to a grid of features."""

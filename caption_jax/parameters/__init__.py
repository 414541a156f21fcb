"""Rules, freezing and sharding of parameters, by their paths."""

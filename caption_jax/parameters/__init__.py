"""Parameters by path: rules, freezing and sharding."""

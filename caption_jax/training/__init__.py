"""Training: objective, optimizer, state, step and loop."""

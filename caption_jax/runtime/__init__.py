"""The process: its environment, signals and compiled programs."""

"""The command line: `python main.py` and the installed command `caption-jax`. `command.py` is where it starts."""

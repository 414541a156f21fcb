"""The command line interface. `python main.py` and the installed command `caption-jax` start in `command.py`.

The subcommand X, or `--mode=X`, calls `run` in `caption_jax/cli/X.py`; `subcommands.py` lists them all.
"""

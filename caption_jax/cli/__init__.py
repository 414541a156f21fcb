"""The command line: `python main.py` and the installed command `caption-jax` start in `command.py`.

Mode X is `caption_jax/cli/X.py`: `--mode=train`, the default, calls `run` of `train.py`, and so on.
"""

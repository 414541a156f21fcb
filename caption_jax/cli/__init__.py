"""The command line interface. `python main.py` and the installed command `caption-jax` start in `command.py`.

`--mode=X` calls `run` in `caption_jax/cli/X.py`; the default mode is `train`.
"""

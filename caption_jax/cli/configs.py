"""`configs`: lists the packaged configs."""

from __future__ import annotations

import os

from absl import app

from caption_jax.config_files import FOLDER, list_configs
from caption_jax.errors import ConfigError


def run(arguments: list[str], program: str) -> int:
    """Prints a line per config, or the description of one config; returns the exit status.

    Args:
        arguments: at most one name of a config.
        program: the command, for the hint below the list.

    Raises:
        UsageError: there are several arguments, or a flag.
        ConfigError: there is no config of this name.
    """
    configs = list_configs()
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise app.UsageError(f"configs takes at most the name of a config, but got {' '.join(arguments)}")
    if not arguments:
        width = max(map(len, configs))
        for name, description in configs.items():
            print(f"{name:<{width}}  {description.partition(chr(10))[0]}")
        print(f"\n`{program} NAME` describes a config. Other values of --config are paths of config files.")
        return 0
    name = arguments[0].removesuffix(".py")
    if name not in configs:
        raise ConfigError(f"no config {name!r}; the packaged configs are {', '.join(configs)}")
    print(f"{os.path.join(FOLDER, f'{name}.py')}\n\n{configs[name]}")
    return 0

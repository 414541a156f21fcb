"""Installs the folder `configs` as the package `caption_jax.configs`, which pyproject.toml cannot express."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["caption_jax*", "input_pipeline*"]), "caption_jax.configs"],
    package_dir={"caption_jax.configs": "configs"},
)

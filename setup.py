"""What pyproject.toml cannot say: the folder `configs` of the checkout is the package `caption_jax.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["caption_jax*", "input_pipeline*"]), "caption_jax.configs"],
    package_dir={"caption_jax.configs": "configs"},
)

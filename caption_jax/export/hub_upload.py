"""Uploads exported models to the Hugging Face Hub."""

from __future__ import annotations

from etils import epath

from caption_jax.errors import ConfigError, StorageError
from caption_jax.named_models import HUB_SCHEME, check_repository, describe_hub_error
from input_pipeline.extras import optional_packages
from input_pipeline.files import is_on_bucket


class HubRepository:
    """A model repository on the Hub, which is created as a private one if it does not exist.

    Args:
        name: owner/name.

    Raises:
        ConfigError: the name is malformed.
        StorageError: the Hub cannot be reached or refuses access.
        MissingPackageError: the client of the Hub is not installed.
    """

    def __init__(self, name: str):
        check_repository(name, f"--push={name}")
        with optional_packages(f"--push={name}"):
            from huggingface_hub import HfApi

        self._name, self._api = name, HfApi()
        try:
            self._api.create_repo(name, private=True, exist_ok=True)
        except Exception as error:  # the client raises many types
            raise StorageError(f"--push={name}: {describe_hub_error(error)}") from error

    def upload(self, folder: epath.Path) -> str:
        """Uploads all files of a folder in one commit, and returns the name for `caption_jax.load`.

        Raises:
            ConfigError: the folder is on a bucket.
            StorageError: the upload fails.
        """
        if is_on_bucket(folder):
            raise ConfigError(f"--push={self._name} needs a local folder, not {folder}: set --out")
        try:
            self._api.upload_folder(
                repo_id=self._name, folder_path=str(folder), commit_message="Model exported by caption-jax"
            )
        except Exception as error:  # the client raises many types
            raise StorageError(
                f"{folder} is complete, but could not be uploaded to {self._name}: {describe_hub_error(error)}. To "
                f"upload it again: hf upload {self._name} {folder}"
            ) from error
        return f"{HUB_SCHEME}{self._name}"

"""Check that a workdir can hold a training run, before any work is done.

Several clients access a bucket (docs/workdir.md), each with its own credentials. Without this check, a client that has
none would end the run at its first checkpoint.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

from etils import epath

from caption_jax.errors import WorkdirError
from input_pipeline.extras import require
from input_pipeline.files import is_on_bucket, write_atomically

_TIMEOUT_SECONDS = 60  # tensorstore retries for much longer


def check_storage(workdir: epath.Path) -> None:
    """Writes and deletes a small object through each client that training uses. Does nothing for a local workdir.

    Raises:
        WorkdirError: checkpoints cannot be written to this kind of bucket, or a client cannot write to it.
        MissingPackageError: a client is not installed.
    """
    if not is_on_bucket(workdir):
        return
    scheme = str(workdir).partition("://")[0]
    if scheme != "gs":
        raise WorkdirError(
            f"--workdir={workdir}: Orbax writes checkpoints only to local disks and gs://, not to {scheme}://: set "
            "--workdir to a local folder, such as a mount of the bucket, or copy the finished run to the bucket, where "
            "all commands except train can read it"
        )
    require(f"training in {workdir}", "gcsfs")
    for client, (probe, role) in _PROBES.items():
        try:
            probe(workdir)
        except Exception as error:  # each client raises its own types
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise WorkdirError(
                f"--workdir={workdir}: {client} cannot access the bucket ({reason}): check its name, and that the "
                f"credentials (`gcloud auth application-default login`) have the permissions of {role}"
            ) from error


def _probe_files(workdir: epath.Path) -> None:
    file = workdir / f".probe-{secrets.token_hex(8)}"
    write_atomically(file, "probe")
    file.unlink()


def _probe_bucket(workdir: epath.Path) -> None:
    from google.cloud import storage  # a requirement of gcsfs; Orbax uses it to look up the kind of bucket

    storage.Client().get_bucket(workdir.parts[2])


def _probe_arrays(workdir: epath.Path) -> None:
    import tensorstore

    _, _, bucket, *folders = workdir.parts
    driver = os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs")  # as in Orbax
    spec = {"driver": driver, "bucket": bucket, "path": "".join(f"{folder}/" for folder in folders)}
    store = tensorstore.KvStore.open(spec).result(_TIMEOUT_SECONDS)
    key = f".probe-{secrets.token_hex(8)}"
    store.write(key, b"probe").result(_TIMEOUT_SECONDS)
    store.write(key, None).result(_TIMEOUT_SECONDS)  # deletes it


# Client -> the function that checks it, and the role on the bucket that it requires.
_PROBES: dict[str, tuple[Callable[[epath.Path], None], str]] = {
    "gcsfs": (_probe_files, "roles/storage.objectUser"),
    "google-cloud-storage": (_probe_bucket, "roles/storage.legacyBucketReader"),
    "tensorstore": (_probe_arrays, "roles/storage.objectUser"),
}

"""Check that a workdir can hold a training run, before any work is done.

Several clients access a bucket (docs/workdir.md), each with its own credentials. Without this check, a client that has
none would end the run at its first checkpoint.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from importlib.metadata import version

from etils import epath

from caption_jax.errors import WorkdirError
from caption_jax.runs.s3_checkpoints import describe_store, is_extended
from input_pipeline.buckets import REMEDIES, describe_bucket_error
from input_pipeline.extras import BUCKET_CLIENTS, require
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
    if scheme not in _PROBES:
        raise WorkdirError(
            f"--workdir={workdir}: checkpoints are written only to local disks, gs:// and s3://, not to {scheme}://: "
            "set --workdir to a local folder, such as a mount of the bucket, or copy the finished run to the bucket, "
            "where all commands except train can read it"
        )
    require(f"training in {workdir}", BUCKET_CLIENTS[scheme])
    for client, (probe, remedy) in _PROBES[scheme].items():
        try:
            probe(workdir)
        except Exception as error:  # each client raises its own types
            raise WorkdirError(
                f"--workdir={workdir}: {client} cannot access the bucket ({describe_bucket_error(error)}): check its "
                f"name, and {remedy}"
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

    scheme, _, path = f"{workdir}/".partition("://")
    if scheme == "s3":
        spec = describe_store(f"{workdir}/")
    else:  # as in Orbax
        bucket, _, folder = path.partition("/")
        spec = {"driver": os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs"), "bucket": bucket, "path": folder}
    store = tensorstore.KvStore.open(spec).result(_TIMEOUT_SECONDS)
    key = f".probe-{secrets.token_hex(8)}"
    store.write(key, b"probe").result(_TIMEOUT_SECONDS)
    store.write(key, None).result(_TIMEOUT_SECONDS)  # deletes it


def _probe_orbax(workdir: epath.Path) -> None:
    if not is_extended():
        raise NotImplementedError(f"orbax-checkpoint {version('orbax-checkpoint')} has other internals")


def _google_remedy(role: str) -> str:
    return REMEDIES["gs"].format(role=role)


_AWS_REMEDY = REMEDIES["s3"].format(actions="list, read, write and delete")
# Scheme -> client -> the function that checks it, and how to give it access.
_PROBES: dict[str, dict[str, tuple[Callable[[epath.Path], None], str]]] = {
    "gs": {
        "gcsfs": (_probe_files, _google_remedy("roles/storage.objectUser")),
        "google-cloud-storage": (_probe_bucket, _google_remedy("roles/storage.legacyBucketReader")),
        "tensorstore": (_probe_arrays, _google_remedy("roles/storage.objectUser")),
    },
    "s3": {
        "s3fs": (_probe_files, _AWS_REMEDY),
        "orbax": (_probe_orbax, "install the release of orbax-checkpoint in constraints.txt"),
        "tensorstore": (_probe_arrays, _AWS_REMEDY),
    },
}

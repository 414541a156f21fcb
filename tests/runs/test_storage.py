"""A workdir on a bucket is checked before a run starts."""

from __future__ import annotations

import sys

import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils

from caption_jax.errors import WorkdirError
from caption_jax.runs import storage
from caption_jax.runs.s3_checkpoints import describe_store, extend_orbax_to_s3, is_extended
from caption_jax.runs.storage import check_storage
from input_pipeline.files import absolute_path


@pytest.fixture
def clients(monkeypatch) -> dict:
    """The functions that check the clients, which the test may replace."""
    monkeypatch.setattr(storage, "require", lambda *_: None)
    probes = {
        scheme: {client: ((lambda workdir: None), remedy) for client, (_, remedy) in clients.items()}
        for scheme, clients in storage._PROBES.items()
    }
    monkeypatch.setattr(storage, "_PROBES", probes)
    return probes


def test_local_workdirs_are_not_written_to(tmp_path):
    check_storage(absolute_path(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_training_in_other_buckets_is_rejected_with_the_remedy(bucket):
    with pytest.raises(WorkdirError, match=r"--workdir=az://b/run: checkpoints are written only to .* local folder"):
        check_storage(type(bucket)("az://b/run"))


@pytest.mark.parametrize(
    ("scheme", "client", "remedy"),
    [
        *(
            ("gs", client, "permissions of roles/storage.")
            for client in ("gcsfs", "google-cloud-storage", "tensorstore")
        ),
        *(("s3", client, "AWS_ENDPOINT_URL") for client in ("s3fs", "tensorstore")),
        ("s3", "orbax", "install the release of orbax-checkpoint in constraints.txt"),
    ],
)
def test_a_client_without_access_is_named(bucket, clients, scheme, client, remedy):
    def deny(workdir) -> None:
        raise PermissionError(403, "does not have access\nto the bucket")

    workdir = type(bucket)(f"{scheme}://bucket/run")
    check_storage(workdir)
    clients[scheme][client] = (deny, clients[scheme][client][1])
    with pytest.raises(WorkdirError) as error:
        check_storage(workdir)
    message = str(error.value)
    assert message.startswith(f"--workdir={workdir}: {client} cannot access the bucket (PermissionError: ")
    assert "\n" not in message and remedy in message


def test_another_release_of_orbax_without_these_internals_only_lacks_s3(monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint._src.path.gcs_utils", None)
    extend_orbax_to_s3()
    assert not is_extended()


def test_orbax_writes_arrays_to_s3_as_it_writes_them_to_gs(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    assert describe_store("s3://bucket/runs/a") == {"driver": "s3", "bucket": "bucket", "path": "runs/a"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    extend_orbax_to_s3()
    assert is_extended()
    store = {"bucket": "bucket", "path": "a/x"}
    base = tensorstore_utils.build_kvstore_tspec("s3://bucket/b/../a/x/")["base"]
    assert base == {"driver": "s3", "endpoint": "http://store", "aws_region": "eu-central-1", **store}
    assert tensorstore_utils.build_kvstore_tspec("gs://bucket/b/../a/x/")["base"] == {"driver": "gcs", **store}


def test_the_check_leaves_no_file(bucket):
    storage._probe_files(bucket / "run")
    assert not list((bucket / "run").iterdir()) if (bucket / "run").exists() else True

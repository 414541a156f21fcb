"""A workdir on a bucket is checked before a run starts."""

from __future__ import annotations

import pytest

from caption_jax.errors import WorkdirError
from caption_jax.runs import storage
from caption_jax.runs.storage import check_storage
from input_pipeline.files import absolute_path


@pytest.fixture
def clients(monkeypatch) -> dict:
    """The functions that check the clients, which the test may replace."""
    monkeypatch.setattr(storage, "require", lambda *_: None)
    probes = {client: ((lambda workdir: None), role) for client, (_, role) in storage._PROBES.items()}
    monkeypatch.setattr(storage, "_PROBES", probes)
    return probes


def test_local_workdirs_are_not_written_to(tmp_path):
    check_storage(absolute_path(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_training_on_s3_is_rejected_with_the_remedy(bucket):
    with pytest.raises(WorkdirError, match=r"--workdir=s3://b/run: Orbax writes checkpoints only to .* local folder"):
        check_storage(type(bucket)("s3://b/run"))


@pytest.mark.parametrize("client", ["gcsfs", "google-cloud-storage", "tensorstore"])
def test_a_client_without_access_is_named(bucket, clients, client):
    def deny(workdir) -> None:
        raise PermissionError(403, "does not have access\nto the bucket")

    check_storage(bucket / "run")
    clients[client] = (deny, clients[client][1])
    with pytest.raises(WorkdirError) as error:
        check_storage(bucket / "run")
    message = str(error.value)
    assert message.startswith(f"--workdir=gs://bucket/run: {client} cannot access the bucket (PermissionError: ")
    assert "\n" not in message and "permissions of roles/storage." in message


def test_the_check_leaves_no_file(bucket):
    storage._probe_files(bucket / "run")
    assert not list((bucket / "run").iterdir()) if (bucket / "run").exists() else True

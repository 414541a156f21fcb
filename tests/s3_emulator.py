"""A bucket of S3, emulated on loopback by moto's server.

s3fs and tensorstore find the emulator through the same environment variables as other AWS tools.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BUCKET = "bucket"
_ABSENT_FILE = "/nonexistent"  # so that no setting of the user is read


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
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": _ABSENT_FILE,
            "AWS_SHARED_CREDENTIALS_FILE": _ABSENT_FILE,
        }

    def list_names(self, prefix: str) -> list[str]:
        """Returns the names of the objects with a prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        """Returns the content of an object."""
        return self._client.get_object(Bucket=BUCKET, Key=name)["Body"].read()

    def write(self, name: str, content: bytes) -> None:
        """Writes an object."""
        self._client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def upload(self, folder: Path, prefix: str) -> None:
        """Writes all files of a folder to objects whose names start with `prefix`."""
        for path in (path for path in folder.rglob("*") if path.is_file()):
            self.write(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    @functools.cached_property
    def _client(self) -> Any:
        import boto3  # a requirement of moto

        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)


@contextlib.contextmanager
def emulate_s3() -> Iterator[Emulator]:
    """Runs an emulator until the end of the `with` block. Skips the test if a package of the test extra is missing."""
    for module in ("s3fs", "moto", "flask"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, which the test extra installs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        emulator = Emulator(f"http://127.0.0.1:{port}")
        _create_bucket(emulator, server)
        yield emulator
    finally:
        server.kill()
        server.wait()


def _create_bucket(emulator: Emulator, server: subprocess.Popen) -> None:
    request = urllib.request.Request(f"{emulator.url}/{BUCKET}", b"", method="PUT")
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:  # the server has not started yet
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def drop_connections(emulator: Emulator, path: bytes, every: int) -> Iterator[tuple[str, list[bytes]]]:
    """Runs a proxy that closes some connections without an answer, as a bad network does.

    Args:
        emulator: the emulator, which answers one request per connection.
        path: part of the URLs of the requests to choose from.
        every: one of so many of these requests is dropped.

    Yields:
        The address of the proxy, and the first lines of the requests that it has dropped so far.
    """
    dropped: list[bytes] = []
    numbers = itertools.count(1)
    host, _, port = emulator.url.removeprefix("http://").partition(":")

    class Proxy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = self.request.recv(1 << 16)
            line = head.partition(b"\r\n")[0]
            if path in line and next(numbers) % every == 0:
                dropped.append(line)
                return
            with socket.create_connection((host, int(port))) as server:
                server.sendall(head)
                sender = threading.Thread(target=_forward, args=(self.request, server), daemon=True)
                sender.start()
                _forward(server, self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", dropped
        server.shutdown()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):  # one side has closed the connection
        while content := source.recv(1 << 16):
            target.sendall(content)

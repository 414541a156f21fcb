"""A server of a small model in another process, with an index of coloured boxes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import small_run
from resident_memory import read_resident_mb

START_SECONDS = 300
DECODING_MB = 128  # so low that a server that exceeds it is noticed
FLAGS = ("--batch_sizes=1,2", "--beams=2", f"--config.limits.decoding_bytes={DECODING_MB * 2**20}")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The status, content and headers of a response."""

    status: int
    content: bytes
    headers: Mapping[str, str]

    def json(self) -> dict:
        return json.loads(self.content)


@dataclasses.dataclass(frozen=True)
class LiveServer:
    """A server that is ready: its URL, its process and the file of its standard error."""

    url: str
    process: subprocess.Popen
    log: Path

    @property
    def resident_mb(self) -> float:
        """Resident memory of the process."""
        return read_resident_mb(self.process.pid)

    def get(self, path: str, **headers: str) -> Answer:
        return self._send(urllib.request.Request(f"{self.url}{path}", headers=headers))

    def post(self, path: str, content: object, kind: str = "application/json") -> Answer:
        """Sends bytes, or another object as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self._send(urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": kind}))

    def _send(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Answer(response.status, response.read(), response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), error.headers)

    @property
    def is_ready(self) -> bool:
        return self.get("/readyz").status == 200


@contextlib.contextmanager
def run_server(workdir: Path, cache: Path, log: Path, *flags: str) -> Iterator[LiveServer]:
    """Runs a server of a model until the end of the `with` block. Fails if it does not get ready.

    Args:
        workdir: the workdir of the model.
        cache: folder of compiled programs.
        log: new file for its standard error, including the access log.
        flags: flags of the command.
    """
    command = [sys.executable, "main.py", "--mode=serve", f"--workdir={workdir}", "--port=0", *flags]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": ""}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=small_run.ROOT, env=environment, stdout=subprocess.PIPE, stderr=file, text=True
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), log.read_text()
        server, end = LiveServer(line.split()[2].rstrip(","), process, log), time.monotonic() + START_SECONDS
        while not server.is_ready:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def make_index(workdir: Path, folder: Path) -> tuple[Path, Path]:
    """Indexes four images, `red.png` to `yellow.png`, and returns the folders of the index and of the images."""
    images, index = folder / "images", folder / "index"
    images.mkdir(parents=True)
    for colour, side in zip(small_run.COLOURS, ("left", "right", "left", "right"), strict=True):
        small_run.box_image(colour, side).save(images / f"{colour}.png")
    assert small_run.run_main("--mode=index", f"--workdir={workdir}", f"--index={index}", images) == 0
    return index, images

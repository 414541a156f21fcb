"""Requests to a live server, many at the same time: hostile ones, and ordinary ones for a measurement of memory."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import socket
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from hostile_uploads import HostileUpload
from live_server import DECODING_MB, LiveServer
from small_run import box_image

CLIENTS = 4
_REFUSALS = (400, 413, 415, 422)
_CHECK_EVERY = 25
# Limits on the growth of the memory of a server: while it decodes hostile images, with buffers of decoders and bodies
# of several clients, and from ordinary requests.
MAX_HOSTILE_MB = 2 * DECODING_MB + 150
MAX_GROWTH_MB = 30


@dataclass(frozen=True)
class HostileResult:
    """Outcome of `send_hostile`.

    Attributes:
        statuses: number of answers by status.
        slowest: seconds of the slowest answer.
        growth_mb: peak of the memory of the server minus that before, in MB.
    """

    statuses: Counter[int]
    slowest: float
    growth_mb: float


def encode_box(colour: str = "red", side: str = "left") -> bytes:
    """Returns an intact image."""
    buffer = io.BytesIO()
    box_image(colour, side).save(buffer, "PNG")
    return buffer.getvalue()


def send_hostile(server: LiveServer, uploads: Iterable[HostileUpload]) -> HostileResult:
    """Sends hostile uploads from several clients.

    Raises:
        AssertionError: the server failed, or does not caption a good image as before.
    """
    good, statuses, slowest = encode_box(), Counter(), 0.0
    expected = _caption(server, good)
    before = peak = server.resident_mb
    uploads = iter(uploads)
    with ThreadPoolExecutor(CLIENTS) as pool:
        while batch := list(itertools.islice(uploads, _CHECK_EVERY)):
            for upload, (status, seconds) in zip(batch, pool.map(lambda u: _send(server, u), batch), strict=True):
                assert status == 200 or status in _REFUSALS, (status, upload.path, upload.kind, upload.content[:200])
                statuses[status] += 1
                slowest = max(slowest, seconds)
            _leave_early(server, batch[0])
            peak = max(peak, server.resident_mb)
            assert server.is_ready and _caption(server, good) == expected
    assert server.process.poll() is None
    return HostileResult(statuses, slowest, peak - before)


def send_ordinary(server: LiveServer, count: int) -> Counter[str]:
    """Sends requests of all kinds from several clients with open connections; returns the counts by path and status."""
    box, bad, texts = encode_box(), b"no image", json.dumps({"texts": ["a red box", "a dog"]}).encode()
    requests = [
        ("POST", "/v1/captions", box, "image/png"),
        ("POST", "/v1/embeddings", texts, "application/json"),
        ("POST", "/v1/search", b'{"query": "a green box"}', "application/json"),
        ("POST", "/v1/search", box, "image/png"),
        ("GET", "/v1/images/0", None, ""),
        ("POST", "/v1/captions?prefix=a+red", box, "image/png"),
        ("POST", "/v1/captions", bad, "image/png"),
        ("GET", "/metrics", None, ""),
        ("POST", "/v1/embeddings", b"{", "application/json"),
        ("GET", "/nothing", None, ""),
    ]

    def send(start: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        for number in range(start, count, CLIENTS):
            method, path, body, kind = requests[(number // CLIENTS) % len(requests)]
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            response = connection.getresponse()
            response.read()
            counts[f"{path} {response.status}"] += 1
        connection.close()
        return counts

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(send, range(CLIENTS)), Counter())


def _send(server: LiveServer, upload: HostileUpload) -> tuple[int, float]:
    """Returns the status and the time of the answer. A refusal may arrive before the body is sent."""
    start = time.monotonic()
    host, port = urlsplit(server.url).netloc.split(":")
    head = f"POST {upload.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {upload.kind}\r\nConnection: close\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(f"{head}Content-Length: {len(upload.content)}\r\n\r\n".encode() + upload.content)
        except (BrokenPipeError, ConnectionResetError):
            return 413, time.monotonic() - start
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            response.read()
        except ConnectionResetError:  # the server has refused the rest of a body
            return 413, time.monotonic() - start
    return response.status, time.monotonic() - start


def _leave_early(server: LiveServer, upload: HostileUpload) -> None:
    """Sends half of a body and leaves."""
    host, port = urlsplit(server.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST {upload.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {upload.kind}\r\n"
        size = len(upload.content)
        connection.sendall(f"{head}Content-Length: {size + 1}\r\n\r\n".encode() + upload.content[: size // 2][:10_000])


def _caption(server: LiveServer, image: bytes) -> str:
    answer = server.post("/v1/captions", image, "image/png")
    assert answer.status == 200, answer.content
    return answer.json()["captions"][0]["caption"]

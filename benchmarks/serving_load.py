"""Clients of a captioning server on loopback, and what they measure. Imports no framework."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

PATH = "/v1/captions"


@dataclass
class Load:
    """What clients observed.

    Attributes:
        elapsed: Time from the first request to the last answer, in seconds.
        latencies: Seconds of each request that was answered with 200.
        statuses: Number of answers by status; 0 stands for a broken connection.
    """

    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers with 200 per second."""
        return len(self.latencies) / self.elapsed

    def percentile(self, percent: float) -> float:
        """Returns a percentile of the latencies, in milliseconds."""
        return 1e3 * float(np.percentile(self.latencies, percent))


def send_closed_loop(port: int, image: bytes, clients: int, seconds: float) -> Load:
    """Sends requests from `clients` that each wait for the answer before the next request."""
    end = time.perf_counter() + seconds

    def starts() -> Iterator[float]:
        while time.perf_counter() < end:
            yield time.perf_counter()

    return _send(port, image, clients, lambda: starts())


def send_open_loop(port: int, image: bytes, clients: int, seconds: float, rate: float) -> Load:
    """Sends `rate` requests per second, whether or not earlier ones have been answered, with up to `clients` at once.

    The latency of a request includes the time that it waited for a client.
    """
    start, lock, count = time.perf_counter(), threading.Lock(), int(rate * seconds)
    numbers = iter(range(count))

    def starts() -> Iterator[float]:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            planned = start + number / rate
            time.sleep(max(planned - time.perf_counter(), 0.0))
            yield planned

    return _send(port, image, clients, starts)


def _send(port: int, image: bytes, clients: int, starts: Callable[[], Iterator[float]]) -> Load:
    """Sends one request at each of the times, which every client takes from its own iterator."""
    load, lock = Load(), threading.Lock()

    def run() -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            for start in starts():
                status = _request(connection, image)
                with lock:
                    load.statuses[status] += 1
                    if status == 200:
                        load.latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.elapsed = time.perf_counter() - begin
    return load


def _request(connection: http.client.HTTPConnection, image: bytes) -> int:
    """Sends an image and reads the answer; returns the status, or 0 if the connection broke."""
    try:
        connection.request("POST", PATH, image, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0

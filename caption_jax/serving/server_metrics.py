"""Metrics of the server in Prometheus' format."""

from __future__ import annotations

import re
from collections.abc import Callable

from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_METHODS = ("GET", "HEAD", "POST")
_OTHER = "other"  # instead of names that clients choose, of which there is no end


class ServerMetrics:
    """Counters of requests and batches, with a registry of their own. Observes a `CaptionService`.

    Args:
        paths: paths of the API, with parameters such as {row}.
    """

    def __init__(self, paths: tuple[str, ...]):
        self._registry = CollectorRegistry()
        self._patterns = {path: re.compile(re.sub(r"{\w+}", "[^/]+", path)) for path in paths}
        registry = {"registry": self._registry}
        labels = ("method", "path")
        self._requests = Counter("caption_jax_requests", "Requests by status.", (*labels, "status"), **registry)
        self._seconds = Histogram(
            "caption_jax_request_seconds", "Time of requests.", labels, buckets=_SECONDS, **registry
        )
        self._images = Counter(
            "caption_jax_images", "Images by outcome: captioned, embedded or unreadable.", ("outcome",), **registry
        )
        self._batch_images = Histogram("caption_jax_batch_images", "Images per batch.", buckets=_SIZES, **registry)
        self._padding = Counter("caption_jax_batch_padding_images", "Images of padding in batches.", **registry)
        self._batch_seconds = Histogram(
            "caption_jax_batch_seconds", "Time of batches on the device.", buckets=_SECONDS, **registry
        )

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is computed when it is read."""
        Gauge(f"caption_jax_{name}", description, registry=self._registry).set_function(value)

    def request_done(self, method: str, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        method = method if method in _METHODS else _OTHER
        path = next((name for name, pattern in self._patterns.items() if pattern.fullmatch(path)), _OTHER)
        self._requests.labels(method, path, status).inc()
        self._seconds.labels(method, path).observe(seconds)

    def batch_done(self, images: int, size: int, seconds: float) -> None:
        """Counts a batch; see `BatchObserver`."""
        self._batch_images.observe(images)
        self._padding.inc(size - images)
        self._batch_seconds.observe(seconds)

    def images_done(self, done: int, unreadable: int, outcome: str = "captioned") -> None:
        """Counts the images of a request."""
        self._images.labels(outcome).inc(done)
        self._images.labels("unreadable").inc(unreadable)

    def render(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

"""A server with the page, a fake model and a fake index, for tests in a browser."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from fake_embedder import FakeEmbedder, FakeIndex
from fake_model import FakeCaption, FakeModel, wait_for
from PIL import Image

from caption_jax.serving.caption_service import Row, ServiceSettings
from caption_jax.serving.embedding_request import Thumbnail
from caption_jax.serving.http_app import make_app
from caption_jax.serving.upload_limits import UploadLimits

CAPTIONS = ("a brown dog runs .", "a brown dog runs", "two dogs on grass .")


def encode_photograph(colour: str = "teal", size: tuple[int, int] = (90, 60), kind: str = "PNG") -> bytes:
    """Returns an image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


class PhotographModel(FakeModel):
    """Captions each image with `CAPTIONS`. Files that start with "bad" cannot be read."""

    def load(self, image: bytes) -> str:
        return super().load(image if image.startswith(b"bad") else b"photograph")

    def make_captions(self, row: Row) -> list[FakeCaption]:
        return [
            FakeCaption(text, -float(rank), has_attention=row.request.attention and not rank)
            for rank, text in enumerate(CAPTIONS[: row.request.program.beams])
        ]

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "encoder": "EfficientNet", "resize": "stretch"}


class PhotographIndex(FakeIndex):
    """Thumbnails of one colour."""

    def make_thumbnail(self, row: int, known_tag: str = "") -> Thumbnail:
        thumbnail = super().make_thumbnail(row, known_tag)
        return dataclasses.replace(thumbnail, content=thumbnail.content and encode_photograph(kind="JPEG"))


@contextlib.contextmanager
def serve_page(token: str = "") -> Iterator[str]:
    """Runs the server in a thread, and yields its URL."""
    embedder = FakeEmbedder(PhotographIndex())
    app = make_app(PhotographModel(), ServiceSettings((1, 4)), UploadLimits(), token, lambda entry: None, embedder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: app.state.service.state == "ready")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)

"""A server with the page, a fake model and a fake search, for tests in a browser."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from fake_model import FakeCaption, FakeModel, wait_for
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from caption_jax.serving.caption_service import Row, ServiceSettings
from caption_jax.serving.http_app import make_app
from caption_jax.serving.upload_limits import UploadLimits

CAPTIONS = ("a brown dog runs .", "a brown dog runs", "two dogs on grass .")


def encode_photograph(colour: str = "teal", size: tuple[int, int] = (90, 60)) -> bytes:
    """Returns a PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
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
        return {**super().describe(), "encoder": "EfficientNet", "resize": "stretch", "search": {"images": 2}}


async def search(request: Request) -> Response:
    """Finds two photographs, of which one has a thumbnail and a caption."""
    content = await request.json()
    assert set(content) == {"query", "limit"}
    found = {"index": 0, "name": "dog.jpg", "score": 0.314, "caption": "a dog", "image": "/v1/thumbnails/0"}
    return JSONResponse({"results": [found, {"index": 1, "name": "cat.jpg", "score": 0.2}]})


async def show_thumbnail(request: Request) -> Response:
    """Returns a thumbnail."""
    return Response(encode_photograph(), media_type="image/png")


@contextlib.contextmanager
def serve_page(token: str = "") -> Iterator[str]:
    """Runs the server in a thread, and yields its URL."""
    app = make_app(PhotographModel(), ServiceSettings((1, 4)), UploadLimits(), token, lambda entry: None)
    app.router.routes += [Route("/v1/search", search, methods=["POST"]), Route("/v1/thumbnails/0", show_thumbnail)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: app.state.service.state == "ready")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)

"""Embeddings and searches share batches, and leave the queue when their caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fake_embedder import NAMES, FakeEmbedder, FakeIndex
from fake_model import FakeModel

from caption_jax.serving.caption_service import CaptionService, ServiceSettings
from caption_jax.serving.embedding_request import EmbeddingProgram
from input_pipeline.errors import ImageError

SETTINGS = ServiceSettings((1, 4), max_wait=0.0, max_queue=20, timeout=5.0, decoders=2)
TEXTS, IMAGES = EmbeddingProgram("texts"), EmbeddingProgram("images")


def serve_behind_a_caption(test: Callable[[CaptionService, Callable[[], None]], Awaitable[None]]) -> FakeEmbedder:
    """Runs a test while a caption occupies the device until the test calls its second argument."""
    model, embedder = FakeModel(), FakeEmbedder(FakeIndex())

    async def run() -> None:
        service = CaptionService(model, SETTINGS, embedder=embedder)
        service.start()
        await service.wait_until_ready()
        model.gate.clear()
        caption = asyncio.create_task(service.caption([b"first"]))
        assert await asyncio.to_thread(model.running.wait, 5)
        await test(service, model.gate.set)
        await caption
        await service.stop()

    asyncio.run(asyncio.wait_for(run(), 20))
    return embedder


async def wait_for_queue(service: CaptionService, length: int) -> None:
    while service.queue_length != length:
        await asyncio.sleep(0.001)


def test_searches_and_embeddings_of_texts_share_a_batch():
    async def test(service, release):
        searches = [asyncio.create_task(service.embed("texts", [name], search=True)) for name in NAMES]
        plain = asyncio.create_task(service.embed("texts", ["dog"]))
        images = asyncio.create_task(service.embed("images", [b"dog", b"bad"]))
        await wait_for_queue(service, 5)
        release()
        for number, search in enumerate(searches):
            assert (await search)[0].matches[0].row == number
        assert (await plain)[0].matches == ()
        embedded, error = await images
        assert (embedded.vector == (await plain)[0].vector).all() and isinstance(error, ImageError)

    batches = serve_behind_a_caption(test).batches
    assert sorted(batches, key=str) == [(IMAGES, 1, 1), (TEXTS, 4, 4)]


def test_a_cancelled_search_leaves_the_queue():
    async def test(service, release):
        kept = asyncio.create_task(service.embed("texts", ["dog"], search=True))
        cancelled = asyncio.create_task(service.embed("texts", ["cat", "horse"], search=True))
        await wait_for_queue(service, 3)
        cancelled.cancel()
        await wait_for_queue(service, 1)
        release()
        assert len((await kept)[0].matches) == len(NAMES)

    assert serve_behind_a_caption(test).batches == [(TEXTS, 1, 1)]

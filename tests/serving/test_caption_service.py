"""Requests share batches, wait within bounds, and do not disturb each other."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable

import pytest
from fake_model import FakeModel

from caption_jax.serving.caption_request import CaptionOptions, Program
from caption_jax.serving.caption_service import CaptionService, ServiceSettings
from caption_jax.serving.refusals import BatchError, DeadlineError, NotReadyError, QueueFullError
from input_pipeline.errors import ImageError

SETTINGS = {"batch_sizes": (1, 4, 8), "max_wait": 0.02, "max_queue": 20, "timeout": 5.0, "decoders": 2}
GREEDY, BEAM = Program("greedy"), Program("beam", 3)


def serve(test: Callable[[CaptionService, FakeModel], Awaitable[None]], **settings) -> FakeModel:
    """Runs a test with a service that is ready, and stops it."""
    model = FakeModel()

    async def run() -> None:
        service = CaptionService(model, ServiceSettings(**{**SETTINGS, **settings}))
        service.start()
        await service.wait_until_ready()
        await test(service, model)
        model.gate.set()
        await service.stop()

    asyncio.run(asyncio.wait_for(run(), 20))
    return model


async def ask(service: CaptionService, *texts: str, **options) -> list[str | ImageError]:
    """Returns the best captions of images."""
    with service.admit(len(texts)):
        async with service.time_limit():
            results = await service.caption([text.encode() for text in texts], CaptionOptions(**options))
    return [result if isinstance(result, ImageError) else result[0].text for result in results]


async def block(service: CaptionService, model: FakeModel) -> asyncio.Task:
    """Starts a batch of one image that runs until the gate of the model is opened."""
    model.gate.clear()
    task = asyncio.create_task(ask(service, "first"))
    assert await asyncio.to_thread(model.running.wait, 5)
    return task


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_images_that_wait_share_the_next_batches():
    async def test(service, model):
        first = await block(service, model)
        others = [asyncio.create_task(ask(service, f"image {number}")) for number in range(11)]
        await until(lambda: service.queue_length == 11)
        model.gate.set()
        assert await first == ["first"]
        assert await asyncio.gather(*others) == [[f"image {number}"] for number in range(11)]

    batches = serve(test).batches
    assert [(len(texts), size) for _, texts, size in batches] == [(1, 1), (8, 8), (3, 4)]


def test_an_image_waits_for_others_up_to_the_latency_bound_and_a_full_batch_does_not():
    async def test(service, model):
        for texts, shortest, longest in ((["a"], 0.2, 2.0), (list("abcdefgh"), 0.0, 0.15)):
            start = time.monotonic()
            await ask(service, *texts)
            assert shortest <= time.monotonic() - start < longest
        assert await asyncio.gather(ask(service, "a"), ask(service, "b")) == [["a"], ["b"]]
        assert sorted(model.batches[-1][1]) == ["a", "b"]

    serve(test, max_wait=0.2)


def test_programs_take_turns_and_options_share_a_program():
    async def test(service, model):
        first = await block(service, model)
        options = [{"method": "beam"}, {}, {"beams": 3, "candidates": 2}, {"prefix": "a dog"}]
        tasks = []
        for number, kinds in enumerate(options):
            tasks.append(asyncio.create_task(ask(service, str(number), **kinds)))
            await until(lambda number=number: service.queue_length == number + 1)
        await asyncio.sleep(2 * SETTINGS["max_wait"])  # so that all of them have waited long enough
        model.gate.set()
        await asyncio.gather(first, *tasks)

    batches = serve(test).batches
    assert [(program, texts) for program, texts, _ in batches[1:]] == [(BEAM, ["0", "2"]), (GREEDY, ["1", "3"])]


def test_candidates_are_returned_best_first():
    async def test(service, model):
        with service.admit():
            (captions,) = await service.caption([b"dog"], CaptionOptions(beams=3, candidates=2))
        assert [caption.log_prob for caption in captions] == [0, -1]

    serve(test)


def test_an_undecodable_image_fails_alone():
    async def test(service, model):
        good, (bad, other) = await asyncio.gather(ask(service, "good"), ask(service, "bad", "other"))
        assert (good, other) == (["good"], "other") and isinstance(bad, ImageError)

    model = serve(test)
    assert sorted(text for _, texts, _ in model.batches for text in texts) == ["good", "other"]
    assert all(name.startswith("decoder") for name in model.decoding_threads), "not in the thread of the event loop"


def test_a_full_queue_refuses_whole_requests_and_recovers():
    async def test(service, model):
        first = await block(service, model)
        others = [asyncio.create_task(ask(service, str(number))) for number in range(18)]
        await until(lambda: service.queue_length == 18)
        with pytest.raises(QueueFullError, match="takes 20 images, and 19 are waiting: try again") as refusal:
            await ask(service, "one", "too many")
        assert refusal.value.retry_after >= 1
        with pytest.raises(QueueFullError, match="has 21 images, but the queue takes 20: send fewer"):
            await ask(service, *["many"] * 21)
        assert service.admitted == 19
        model.gate.set()
        await asyncio.gather(first, *others)
        assert service.admitted == 0 and await ask(service, "again") == ["again"]

    serve(test)


def test_requests_that_time_out_or_are_cancelled_leave_the_queue():
    async def test(service, model):
        first = await block(service, model)
        cancelled = asyncio.create_task(ask(service, "cancelled", "bad"))
        await until(lambda: service.queue_length == 1)
        cancelled.cancel()
        with pytest.raises(DeadlineError, match=r"longer than 0\.3 s"):
            await ask(service, "late")
        assert cancelled.cancelled() and service.queue_length == 0
        model.gate.set()
        with pytest.raises(DeadlineError):
            await first
        assert service.admitted == 0 and await ask(service, "next") == ["next"]

    batches = serve(test, timeout=0.3).batches
    assert [texts for _, texts, _ in batches] == [["first"], ["next"]]


def test_an_error_of_a_batch_reaches_its_images_and_no_others(caplog):
    def fail() -> None:
        raise RuntimeError("out of memory")

    async def test(service, model):
        model.before_batch = fail
        results = await asyncio.gather(ask(service, "a"), ask(service, "b"), return_exceptions=True)
        assert [type(result) for result in results] == [BatchError] * 2
        model.before_batch = lambda: None
        assert await ask(service, "c") == ["c"] and service.admitted == 0

    serve(test)
    assert "a batch of 2 images failed" in caplog.text and "out of memory" in caplog.text


def test_stopping_finishes_accepted_images_and_refuses_new_ones():
    async def test(service, model):
        first = await block(service, model)
        others = [asyncio.create_task(ask(service, str(number))) for number in range(3)]
        await until(lambda: service.queue_length == 3)
        stop, start = asyncio.create_task(service.stop()), time.monotonic()
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError, match="stopping"):
            await ask(service, "new")
        model.gate.set()
        await stop
        assert time.monotonic() - start < 1, "nobody can join them"
        assert await asyncio.gather(first, *others) == [["first"], ["0"], ["1"], ["2"]]

    serve(test, max_wait=1)


def test_requests_are_refused_until_all_sizes_are_compiled():
    async def test() -> None:
        model = FakeModel()
        model.gate.clear()
        service = CaptionService(model, ServiceSettings(**SETTINGS))
        service.start()
        with pytest.raises(NotReadyError, match="starting"):
            await ask(service, "early")
        model.gate.set()
        await service.wait_until_ready()
        assert model.warm_sizes == [1, 4, 8] and await ask(service, "dog") == ["dog"]
        await service.stop()

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_failed_compilation_is_reported():
    async def test() -> None:
        model = FakeModel()
        model.warm_up = functools.partial(int, "no program")
        service = CaptionService(model, ServiceSettings(**SETTINGS))
        service.start()
        with pytest.raises((TypeError, ValueError)):
            await service.wait_until_ready()
        assert service.state == "failed"
        await service.stop()

    asyncio.run(asyncio.wait_for(test(), 10))

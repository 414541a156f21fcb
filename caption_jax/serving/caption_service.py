"""The service behind the HTTP API: admits requests, decodes their images and batches them. Independent of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from caption_jax.serving.batcher import Batcher, BatchObserver
from caption_jax.serving.caption_request import CaptionOptions, CaptionRequest, Offer, Program
from caption_jax.serving.embedding_request import Embedded, Embedder, EmbeddingProgram, EmbeddingRow, Kind
from caption_jax.serving.refusals import DeadlineError, NotReadyError, QueueFullError
from input_pipeline.errors import ImageError

if TYPE_CHECKING:
    from caption_jax.inference.captioner import Caption
    from caption_jax.inference.image_inputs import ImageInput

STARTING, READY, STOPPING, FAILED = "starting", "ready", "stopping", "failed"
_START_SECONDS = 5  # after which to retry a request that arrives before the programs are compiled


class Model(Protocol):
    """A model that is served; implemented by `caption_jax.serving.served_model.ServedModel`."""

    offer: Offer

    def load(self, image: ImageInput) -> Any:
        """Decodes an image to pixels. Called in several threads. Raises ImageError if the image cannot be read."""

    def run(self, program: Program, rows: list[Row], size: int) -> Sequence[Sequence[Caption]]:
        """Returns the captions of each row, best first. The batch is padded to `size`.

        The first caption of a row whose request has `attention` also has the attribute `attention`, a `WordAttention`.
        """

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Compiles all programs of the offer for the sizes."""

    def describe(self) -> Mapping[str, Any]:
        """Returns facts about the model, in JSON."""


@dataclasses.dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service.

    Attributes:
        batch_sizes: sizes of batches, for each of which every program is compiled.
        max_wait: maximum time that an image waits for others while the device is idle, in seconds.
        max_queue: maximum number of images that have been accepted and have no caption yet.
        timeout: maximum time of a request, in seconds.
        decoders: number of threads that decode images.
    """

    batch_sizes: Sequence[int] = (1, 4, 16)
    max_wait: float = 0.01
    max_queue: int = 64
    timeout: float = 30.0
    decoders: int = min(os.cpu_count() or 1, 8)


@dataclasses.dataclass(frozen=True)
class Row:
    """One image of a batch."""

    pixels: Any
    request: CaptionRequest


class Admission:
    """The accepted images of one request. Made by `CaptionService.admit`.

    Attributes:
        count: their number.
    """

    def __init__(self, service: CaptionService):
        self._service = service
        self.count = 0

    def resize(self, count: int) -> None:
        """Changes the number of images, once it is known. Raises QueueFullError if there is no room for more."""
        self._service._add_images(count - self.count, count)
        self.count = count


class CaptionService:
    """Captions images for many callers at the same time. Belongs to one event loop.

    Args:
        model: the model.
        settings: limits and batch sizes.
        observer: is told of each batch.
        embedder: the joint embedding of the model; None if embeddings and searches are not offered.

    Attributes:
        state: `STARTING` until all programs are compiled, then `READY`; `STOPPING` after `stop`; `FAILED` if the
            programs cannot be compiled.
        error: the error in state `FAILED`.
    """

    def __init__(
        self,
        model: Model,
        settings: ServiceSettings,
        observer: BatchObserver | None = None,
        embedder: Embedder | None = None,
    ):
        self.model, self.settings, self.embedder = model, settings, embedder
        self.state = STARTING
        self.error: BaseException | None = None
        self._observer = observer
        self._admitted = 0
        self._batcher: Batcher[Program | EmbeddingProgram, Any, Any] | None = None
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decoder")
        self._start: asyncio.Task | None = None

    @property
    def queue_length(self) -> int:
        """Number of images that wait for a batch."""
        return 0 if self._batcher is None else len(self._batcher)

    @property
    def admitted(self) -> int:
        """Number of images that have been accepted and have no caption yet."""
        return self._admitted

    def start(self) -> None:
        """Starts to compile the programs, in a thread."""
        settings = self.settings
        self._batcher = Batcher(self._run, settings.batch_sizes, settings.max_wait, self._observer)
        self._start = asyncio.get_running_loop().create_task(self._warm_up())

    async def wait_until_ready(self) -> None:
        """Waits until the programs are compiled. Raises the error of the compilation."""
        await asyncio.shield(self._start)
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        """Refuses new requests, and captions the images of those that have been accepted."""
        is_ready, self.state = self.state == READY, STOPPING
        if is_ready:
            self._batcher.stop_waiting()
            while self._admitted:  # images that are being decoded are not in the queue yet
                await asyncio.sleep(0.01)
            await self._batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def admit(self, count: int = 1) -> Iterator[Admission]:
        """Counts images as accepted inside the `with` block.

        Raises:
            QueueFullError: there would be more than `settings.max_queue`.
            NotReadyError: programs are being compiled, or the service is stopping.
        """
        if self.state != READY:
            raise NotReadyError(f"the server is {self.state}", _START_SECONDS)
        admission = Admission(self)
        try:
            admission.resize(count)
            yield admission
        finally:
            self._admitted -= admission.count

    def _add_images(self, count: int, total: int) -> None:
        """Counts more images as accepted, for a request that then has `total` images."""
        limit = self.settings.max_queue
        if total > limit:
            raise QueueFullError(f"the request has {total} images, but the queue takes {limit}: send fewer", 1)
        if self._admitted + count > limit:
            seconds = self._batcher.estimate_seconds(self._admitted)
            raise QueueFullError(
                f"the queue takes {limit} images, and {self._admitted} are waiting: try again", seconds
            )
        self._admitted += count

    @contextlib.asynccontextmanager
    async def time_limit(self) -> AsyncIterator[None]:
        """Cancels the `with` block after `settings.timeout`. Raises DeadlineError in this case."""
        try:
            async with asyncio.timeout(self.settings.timeout):
                yield
        except TimeoutError:
            raise DeadlineError(f"the request took longer than {self.settings.timeout:g} s: try again", 1) from None

    async def caption(
        self, images: Sequence[ImageInput], options: CaptionOptions | None = None
    ) -> list[list[Caption] | ImageError]:
        """Captions images, which must have been admitted (`admit`); see `time_limit`.

        Returns:
            For each image, its captions, best first, or the error if it cannot be read.

        Raises:
            OptionError: the options are not offered.
        """
        request = self.model.offer.resolve(options or CaptionOptions())
        results = await self._process(images, self.model.load, request.program, lambda pixels: Row(pixels, request))
        return [result if isinstance(result, ImageError) else list(result[: request.candidates]) for result in results]

    async def embed(
        self, kind: Kind, items: Sequence[ImageInput | str], *, search: bool = False
    ) -> list[Embedded | ImageError]:
        """Embeds images or texts, which must have been admitted (`admit`); see `time_limit`. Requires an embedder.

        Args:
            kind: "images" or "texts".
            items: the images or texts.
            search: whether to search the index for each.

        Returns:
            For each item, its embedding, or the error if it is an image that cannot be read.
        """
        load = self.model.load if kind == "images" else self.embedder.encode
        return await self._process(items, load, EmbeddingProgram(kind), lambda item: EmbeddingRow(item, search))

    async def run_in_decoder(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in one of the threads that decode images."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    async def _process(
        self,
        items: Sequence[Any],
        load: Callable[[Any], Any],
        program: Program | EmbeddingProgram,
        make_row: Callable[[Any], Any],
    ) -> list[Any | ImageError]:
        """Loads items in the threads for decoding, and runs a program on them. An item that cannot be read fails alone.

        Raises:
            BatchError: a batch failed.
        """

        async def process(item: Any) -> Any | ImageError:
            try:
                loaded = await self.run_in_decoder(load, item)
            except ImageError as error:
                return error
            return await self._batcher.submit(program, make_row(loaded))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(process(item)) for item in items]
        except BaseExceptionGroup as errors:  # a batch failed
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _run(self, program: Program | EmbeddingProgram, rows: list[Any], size: int) -> Sequence[Any]:
        model = self.embedder if isinstance(program, EmbeddingProgram) else self.model
        return model.run(program, rows, size)

    def _compile(self) -> None:
        for model in (self.model, self.embedder):
            if model is not None:
                model.warm_up(self.settings.batch_sizes)

    async def _warm_up(self) -> None:
        try:
            await self._batcher.run_alone(self._compile)
        except Exception as error:  # of any type: the server reports it and ends
            self.error, self.state = error, FAILED
        else:
            self.state = READY if self.state == STARTING else self.state

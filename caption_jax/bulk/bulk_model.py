"""The model of a worker: captions and vectors of the images of a unit, in batches of few compiled sizes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from caption_jax.bulk.bulk_job import Job
from caption_jax.bulk.parts import Row, make_schema
from caption_jax.bulk.unit_images import UnitImage, open_images
from caption_jax.bulk.work_units import Unit
from caption_jax.inference.caption_program import make_caption_program
from caption_jax.inference.captioner import Caption, make_caption
from caption_jax.inference.embedding_programs import make_embedding_programs
from caption_jax.inference.ensemble import load_ensemble
from caption_jax.runs.loading import load_model
from input_pipeline.errors import DataError, ImageError
from input_pipeline.prefetch import prefetch_to_device

_THREADS = 4  # that decode images
_NO_TOKEN = -1  # padding of prefixes
_NO_LIMIT = 2**30  # a maximum length that is never reached


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """An image with its pixels, or with the reason why there are none."""

    row: Row
    pixels: UInt8[np.ndarray, "size size 3"] | None


class BulkModel:
    """A model that captions units of work.

    Args:
        job: the model and what to compute.

    Attributes:
        schema: columns of the Parquet files.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the settings do not fit the model.
    """

    def __init__(self, job: Job):
        self._job = job
        model = load_model(job.workdir, job.checkpoint, dtype=job.weights)
        self._description = description = model.description.with_limits(job.limits)
        self._variables = model.weights.variables
        self._decode = decode = job.complete_decode(description.model_settings.max_length)
        ensemble = load_ensemble(decode.ensemble, description, job.workdir, weights=job.weights)
        self._other_variables = ensemble.variables
        self._generate = make_caption_program(description, decode, ensemble, job.workdir)
        self._embed_images, _ = make_embedding_programs(description, job.workdir)
        self.schema = make_schema(job.alternatives, description.spec.model.joint_embedding.width if job.vectors else 0)

    def caption(self, unit: Unit) -> list[Row]:
        """Returns one row per image of a unit, in their order.

        Images are decoded while the batch before them is captioned. A batch that is not full is padded, to a quarter of
        the batch size if that is enough, so there are two compiled programs.
        """
        rows: list[Row] = []
        images = open_images(unit, self._job.limits)
        with ThreadPoolExecutor(_THREADS) as pool:
            loaded = (list(pool.map(self._load, chunk)) for chunk in _split(images, self._job.batch_size))
            with prefetch_to_device(loaded, size=1) as batches:
                for batch in batches:
                    rows += self._caption_batch(batch)
        return rows

    def _load(self, image: UnitImage) -> _Loaded:
        row = Row(image.source, image.key, error=image.error or None)
        if row.error:
            return _Loaded(row, None)
        try:
            content = image.image
            if isinstance(content, Path):
                status = content.stat()
                row = dataclasses.replace(row, size=status.st_size, mtime_ns=status.st_mtime_ns)
            content = content() if callable(content) else content
            return _Loaded(row, self._description.preprocessing.load(content, name=image.key or image.source))
        except ImageError as error:
            reason = error.reason
        except FileNotFoundError:
            reason = "does not exist"
        except (OSError, DataError) as error:
            reason = str(error)
        return _Loaded(dataclasses.replace(row, error=reason), None)

    def _caption_batch(self, batch: Sequence[_Loaded]) -> list[Row]:
        pixels = [image.pixels for image in batch if image.pixels is not None]
        if not pixels:
            return [image.row for image in batch]
        quarter = max(self._job.batch_size // 4, 1)
        size = quarter if len(pixels) <= quarter else self._job.batch_size
        padded = np.zeros((size, *pixels[0].shape), np.uint8)
        padded[: len(pixels)] = pixels
        captions = iter(self._generate_captions(padded) if self._job.captions else itertools.repeat([]))
        vectors = iter(self._embed(padded) if self._job.vectors else itertools.repeat(None))
        rows = []
        for image in batch:
            rows.append(image.row if image.pixels is None else self._fill(image.row, next(captions), next(vectors)))
        return rows

    def _fill(self, row: Row, candidates: Sequence[Caption], vector: np.ndarray | None) -> Row:
        row = dataclasses.replace(row, vector=vector)
        if not candidates:
            return row
        best, *others = candidates
        alternatives = [(caption.text, caption.log_prob) for caption in others] if self._job.alternatives else None
        return dataclasses.replace(row, caption=best.text, log_prob=best.log_prob, alternatives=alternatives)

    def _generate_captions(self, pixels: UInt8[np.ndarray, "batch size size 3"]) -> list[list[Caption]]:
        """Returns the best caption of each image, followed by the alternatives."""
        arguments = (self._variables, pixels, None, self._other_variables)
        count = self._job.alternatives + 1
        if count == 1:
            tokens, log_probs = jax.device_get(self._generate(*arguments))
            tokens, log_probs = tokens[:, None], log_probs[:, None]
        else:  # the program with limits per image returns all candidates
            prefixes = np.full((len(pixels), max(self._decode.max_length - 2, 1)), _NO_TOKEN, np.int32)
            limits = np.full(len(pixels), _NO_LIMIT, np.int32)
            tokens, log_probs = jax.device_get(self._generate(*arguments, prefixes, limits))
        vocabulary = self._description.vocabulary
        return [
            [
                make_caption(vocabulary, ids.tolist(), float(log_prob))
                for number, (ids, log_prob) in enumerate(zip(*candidates, strict=True))
                if number == 0 or np.isfinite(log_prob)  # -inf: the settings allow fewer captions
            ][:count]
            for candidates in zip(tokens, log_probs, strict=True)
        ]

    def _embed(self, pixels: UInt8[np.ndarray, "batch size size 3"]) -> np.ndarray:
        return np.asarray(self._embed_images(self._variables, pixels), np.float32)


def _split(images: Iterator[UnitImage], size: int) -> Iterator[list[UnitImage]]:
    while chunk := list(itertools.islice(images, size)):
        yield chunk

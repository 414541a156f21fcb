"""Iterators over batches of NumPy arrays: exactly resumable for training, one pass over all examples for evaluation.

The images of a training run form one infinite sequence of epochs, each shuffled by (seed, epoch). Each global batch
consists of the next `batch_size` images of the sequence, and process p of P loads the p-th of P equal parts. The data
of a step therefore does not depend on the number of processes or threads, and the number of consumed images is the
entire state of an iterator. A batch may span two epochs.

A `Batch` is a dictionary of the following arrays, where b = batch_size / P images (`eval_batch_size` for evaluation),
K = `captions_per_image` (0 for the maximum over all images) and L = `max_length` tokens:

    image        uint8 [b, size, size, 3]: pixels
    features     float16 or float32 [b, *shape]: encoder features of one view; replaces `image` with a feature cache
    tokens       int32 [b, K, L]: captions from <s> to </s>, padded. Captions repeat if an image has fewer than K
    context      int32 [b, max_texts, L]: captions of other images, in the format of `tokens`; unused rows are padding.
                 Present if `config.model.context.max_texts` > 0
    mask         bool [b]: False for padding and for unreadable images
    index        int32 [b]: index of the image in its split; -1 for padding

Packed training batches (`packing.py`), with several captions per row and no padding between them, also contain

    inputs       int32 [rows, packed]: decoder input tokens
    targets      int32 [rows, packed]: the next token of each input token
    segment_ids  int32 [rows, packed]: 1-based index of the token's caption within its row; 0 for padding
    positions    int32 [rows, packed]: 0-based position of the token within its caption

`_ShuffledEpochs` defines the order of images, `_Shard` selects the images of one process, grain's threads load them
with `_ExampleLoader`, and `_Batches` assembles the arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from input_pipeline.captions import CaptionEncoder, EncodedCaptions
from input_pipeline.context import ContextCaptions
from input_pipeline.data_spec import DataSpec
from input_pipeline.extras import optional_packages
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.inputs import Inputs, Pixels, StoredFeatures, cycle_indices
from input_pipeline.records import MAX_LISTED, DataError, Split

Batch = dict[str, np.ndarray]  # the arrays listed in the module docstring

# If none of the first images can be read, an error is raised after this many, because the dataset is probably broken.
MAX_UNREADABLE = 32

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """Pixels or features of one image, with its selected captions as token ids.

    `image` is None if it could not be read, and `problem` is the reason. `context` contains captions of other images,
    or is None if batches have no context.
    """

    index: int
    tokens: Int32[np.ndarray, "captions length"]
    image: np.ndarray | None
    context: Int32[np.ndarray, "max_texts length"] | None = None
    problem: str = ""


def train_batches(  # noqa: PLR0913 - the optional inputs are keyword-only
    split: Split,
    preprocessing: Preprocessing,
    vocabulary: CaptionEncoder,
    spec: DataSpec,
    seed: int,
    *,
    features: StoredFeatures | None = None,
    context: ContextCaptions | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Returns an infinite iterator over the training batches of one process.

    The names of unreadable images are logged. The module docstring lists the arrays of a batch.

    Args:
        split: the training split.
        preprocessing: preprocessing of images.
        vocabulary: encodes captions.
        spec: `config.data`.
        seed: seed for the order of images and captions.
        features: stored features of the images in `split`, used instead of pixels.
        context: context captions of the images in `split`.
        process_index: index of this process, which determines its part of each global batch.
        process_count: number of processes.

    Raises:
        DataError: the split is empty, or the batch size is not a multiple of the number of processes.
    """
    inputs = features or Pixels(split, preprocessing)
    return TrainBatches(split, inputs, vocabulary, spec, seed, context, process_index, process_count)


def eval_batches(
    split: Split,
    preprocessing: Preprocessing,
    vocabulary: CaptionEncoder,
    spec: DataSpec,
    *,
    context: ContextCaptions | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Returns an iterator for one ordered pass over a split, with each example exactly once across all processes.

    Batches have the format of `train_batches`, with `eval_batch_size` images and the first captions of each image. The
    last batch is padded with rows that have mask False and index -1, so every process has the same number of batches;
    process p loads the p-th part of each. Unreadable images have mask False and their actual index.
    """
    inputs = Pixels(split, preprocessing)
    return EvalBatches(split, inputs, vocabulary, spec, context, process_index, process_count)


class _Batches:
    """Assembles batches of examples prefetched by grain's threads, and records unreadable images."""

    def __init__(self, loader: _ExampleLoader, batch_size: int, process_index: int, process_count: int, workers: int):
        if batch_size < 1 or batch_size % process_count:
            raise DataError(
                f"a batch of {batch_size} images cannot be split evenly across {process_count} processes; set "
                "config.data.batch_size and config.data.eval_batch_size to multiples of the number of processes"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index must be in [0, {process_count}), got {process_index}")
        self.split = loader.split
        self.batch_size = batch_size
        self.local_size = batch_size // process_count
        self.problems: dict[str, str] = {}  # reason by name of the unreadable image
        self.problem_count = 0  # rows with unreadable images, including repetitions
        self._process_index = process_index
        self._loader = loader
        self._workers = workers
        self._readable = 0
        self._examples: Iterator[Example] | None = None

    def __iter__(self):
        return self

    def close(self) -> None:
        """Stops prefetching. Iteration may continue afterwards from the same position."""
        if self._examples is not None:
            self._examples.close()
        self._examples = None

    def _iterate(self, shard: _Shard) -> Iterator[Example]:
        buffer_size = max(2 * self._workers, self.local_size) if self._workers else 0
        with optional_packages("reading batches of images"):
            import grain

        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=buffer_size)
        return iter(grain.MapDataset.source(shard).map(self._loader).to_iter_dataset(options))

    def _assemble(self, count: int) -> Batch:
        """Assembles a batch of `count` examples; the remaining rows are padding."""
        inputs, rows = self._loader.inputs, self.local_size
        image = np.empty((rows, *inputs.shape), inputs.dtype)
        tokens = np.empty((rows, *self._loader.blank.shape), np.int32)
        context = None if self._loader.context is None else np.tile(self._loader.context.empty, (rows, 1, 1))
        mask = np.zeros(rows, bool)
        index = np.full(rows, -1, np.int32)
        for row in range(count):
            example = self._next_example()
            index[row] = example.index
            tokens[row] = example.tokens
            if context is not None:
                context[row] = example.context
            if example.image is None:
                self._record_problem(example)
            else:
                image[row] = example.image
                mask[row] = True
                self._readable += 1
        # Rows without an image repeat a valid one, because black images would bias the batch norm statistics.
        image[~mask] = image[mask.argmax()] if mask.any() else 0
        tokens[count:] = self._loader.blank
        optional = {} if context is None else {"context": context}
        return {inputs.name: image, "tokens": tokens, **optional, "mask": mask, "index": index}

    def _next_example(self) -> Example:
        try:
            return next(self._examples)
        except BaseException:
            self.close()  # a retry starts this batch from its first example
            raise

    def _record_problem(self, example: Example) -> None:
        name = self.split[example.index].name
        self.problem_count += 1
        if name not in self.problems:
            self.problems[name] = example.problem
            log.warning("Skipping unreadable image: %s", example.problem)
        if not self._readable and len(self.problems) >= min(MAX_UNREADABLE, len(self.split)):
            first = "\n  ".join(list(self.problems.values())[:MAX_LISTED])
            raise DataError(f"none of the first {len(self.problems)} images could be read:\n  {first}")


class TrainBatches(_Batches):
    """Infinite iterator over batches; see `train_batches`."""

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        vocabulary: CaptionEncoder,
        spec: DataSpec,
        seed: int,
        context: ContextCaptions | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        loader = _ExampleLoader(split, inputs, vocabulary, spec, seed, context)
        super().__init__(loader, spec.batch_size, process_index, process_count, spec.workers)
        self._order = _ShuffledEpochs(len(split), seed)
        ids = "\n".join(repr(image_id) for image_id in split.image_ids)
        self._sequence = {"seed": seed, "split": hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()}
        if context is not None:
            self._sequence["context"] = context.fingerprint()
        self._consumed = 0  # images, summed over all processes

    @property
    def epoch(self) -> float:
        """Number of epochs completed so far, including the fraction of the current epoch."""
        return self._consumed / len(self.split)

    def __next__(self) -> Batch:
        if self._examples is None:
            self._examples = self._iterate(
                _Shard(self._order, self._consumed, self.batch_size, self.local_size, self._process_index)
            )
        batch = self._assemble(self.local_size)
        self._consumed += self.batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the number of consumed images and the identity of their sequence, as a JSON-compatible dictionary.

        "split" is a hash of the image ids in order. The state is the same on every process, and a run may resume with a
        different number of processes or batch size.
        """
        return {"images": self._consumed, **self._sequence}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state returned by `get_state`; iteration resumes with the batch after it.

        Raises:
            DataError: the state is from a different sequence (images, context or seed differ).
        """
        keys = [key for key in ("seed", "split", "context") if state.get(key) != self._sequence.get(key)]
        differences = [f"{key}: saved {state.get(key)}, current {self._sequence.get(key)}" for key in keys]
        if differences:
            raise DataError(f"the saved data iterator state is from different data ({'; '.join(differences)})")
        self.close()
        self._consumed = int(state["images"])


class EvalBatches(_Batches):
    """Iterator over one ordered pass; see `eval_batches`. Its length is the number of batches."""

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        vocabulary: CaptionEncoder,
        spec: DataSpec,
        context: ContextCaptions | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        loader = _ExampleLoader(split, inputs, vocabulary, spec, None, context)
        super().__init__(loader, spec.eval_batch_size, process_index, process_count, spec.workers)
        self._batch = 0

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __next__(self) -> Batch:
        if self._batch == len(self):
            self.close()
            raise StopIteration
        start = self._batch * self.batch_size
        if self._examples is None:
            order = range(len(self.split))
            self._examples = self._iterate(_Shard(order, start, self.batch_size, self.local_size, self._process_index))
        remaining = len(self.split) - start - self._process_index * self.local_size
        batch = self._assemble(min(max(remaining, 0), self.local_size))
        self._batch += 1
        return batch


class _Shard:
    """The part of the global sequence that one process reads, as a grain data source."""

    def __init__(self, order, start: int, batch_size: int, local_size: int, process_index: int):
        self._order = order
        self._start = start
        self._batch_size = batch_size
        self._local_size = local_size
        self._offset = process_index * local_size
        batches, remainder = divmod(len(order) - start, batch_size)
        self._length = batches * local_size + min(max(remainder - self._offset, 0), local_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Returns the position in the global sequence and the index of the record."""
        batch, row = divmod(index, self._local_size)
        position = self._start + batch * self._batch_size + self._offset + row
        return position, self._order[position]


class _ShuffledEpochs:
    """Infinite sequence of record indices, shuffled differently in each epoch."""

    def __init__(self, count: int, seed: int):
        if not count:
            raise DataError("the training split has no images")
        self._count = count
        self._shuffle_epoch = functools.lru_cache(maxsize=3)(functools.partial(_shuffle_epoch, count, seed))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._count)
        return int(self._shuffle_epoch(epoch)[index])


def _shuffle_epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    # NumPy guarantees that raw random numbers are stable across versions, but not permutations. (grain's shuffle takes
    # milliseconds per image on datasets of a few hundred images.)
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=16).digest(), "big")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


class _ExampleLoader:
    """Loads the example for a position in the global sequence and a record index. Thread-safe."""

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        vocabulary: CaptionEncoder,
        spec: DataSpec,
        seed: int | None,
        context: ContextCaptions | None,
    ):
        self.split = split
        self.inputs = inputs
        self.context = context
        self._seed = seed
        self._captions = EncodedCaptions(split, vocabulary, spec.max_length)
        self._captions_per_image = spec.captions_per_image or max((1, *(len(record.captions) for record in split)))
        empty = np.asarray(vocabulary.encode("", spec.max_length), np.int32)
        self.blank = np.tile(empty, (self._captions_per_image, 1))

    def __call__(self, item: tuple[int, int]) -> Example:
        position, index = item
        record, epoch = self.split[index], position // len(self.split)
        tokens = self.blank
        if record.captions:
            available, choices = len(record.captions), range(self._captions_per_image)
            if self._seed is not None:
                choices = choose_captions(available, len(choices), self._seed, epoch, record.image_id)
            tokens = np.stack([self._captions[index, choice % available] for choice in choices])
        context = None if self.context is None else self.context.load(record.image_id, self._seed, epoch)
        try:
            return Example(index, tokens, self.inputs.load(index, epoch), context)
        except ImageError as error:
            return Example(index, tokens, None, context, str(error))


def choose_captions(available: int, count: int, seed: int, epoch: int, image_id: str | int) -> list[int]:
    """Chooses the captions of an image for an epoch, and returns their indices.

    The captions are shuffled by (seed, image id), and each epoch uses the next `count` captions, cyclically. A step
    uses each caption at most once, unless there are fewer than `count`. Over many epochs, all are used equally often.

    Args:
        available: number of captions of the image, at least 1.
        count: number of captions to choose.
        seed: seed of the run.
        epoch: 0-based epoch.
        image_id: id of the image.
    """
    return cycle_indices(available, count, f"{seed}/{image_id!r}", epoch)

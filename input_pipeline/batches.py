"""Batches of NumPy arrays: exactly resumable for training, each example exactly once for evaluation.

The images of a training run form one endless sequence: epoch after epoch, each shuffled by (seed, epoch). Global
batch b is the b-th run of `batch_size` images of that sequence, and process p of P takes the p-th of P equal parts of
it. So what a step sees depends on neither the number of processes nor that of threads, and the whole state of an
iterator is one number: the images consumed so far. A batch may span two epochs.

A `Batch` is a dictionary, with b = batch_size / P images (`eval_batch_size` in evaluations), K = `captions_per_image`
(0: the most that any image has) and L = `max_length` tokens, of

    image        uint8 [b, size, size, 3]: pixels; or, with a feature cache, in their place
    features     float16 or float32 [b, *shape]: output of a stage of the encoder, of the view that the epoch takes
    tokens       int32 [b, K, L]: captions, from <s> to </s>, then pads. Fewer than K of an image repeat
    context      int32 [b, slots, L]: captions of other images, as `tokens`; a slot without one holds pads alone.
                 Only where `config.model.context.slots` is above 0
    mask         bool [b]: False where the image could not be read, and for padding
    index        int32 [b]: number of the image in its split; -1 for padding

and of training batches that are packed (`packing.py`), in rows of several captions without the pads, also

    inputs       int32 [rows, packed]: tokens that the decoder reads
    targets      int32 [rows, packed]: the token that follows each of them
    segment_ids  int32 [rows, packed]: number of the token's caption in its row, from 1 on; 0 for padding
    positions    int32 [rows, packed]: number of the token in its caption, from 0 on

`_Shuffled` puts the images in order, `_Part` takes this process's share, grain's threads call `_Loader` for an example
of each, and `_Batches` fills arrays with them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from input_pipeline.captions import EncodedCaptions, EncodesCaptions
from input_pipeline.context import ContextCaptions
from input_pipeline.data_spec import DataSpec
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.inputs import Inputs, Pixels, StoredFeatures, in_turn
from input_pipeline.records import SHOWN, DataError, Split

Batch = dict[str, np.ndarray]  # the arrays listed above

# A run with this many unreadable images and not one good one has the wrong images.
HOPELESS = 32

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One image's pixels or features with the chosen captions as ids; `problem` says why there is no image.

    `context` holds captions of other images, None where batches have no context.
    """

    index: int
    tokens: Int32[np.ndarray, "captions length"]
    image: np.ndarray | None
    context: Int32[np.ndarray, "slots length"] | None = None
    problem: str = ""


def train_batches(  # noqa: PLR0913 - by keyword: what only some runs have
    split: Split,
    preprocessing: Preprocessing,
    vocabulary: EncodesCaptions,
    spec: DataSpec,
    seed: int,
    *,
    features: StoredFeatures | None = None,
    context: ContextCaptions | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Returns the endless training batches of one process.

    Images that cannot be read are logged by name. The module's docstring lists the arrays of a batch.

    Args:
        split: the training split.
        preprocessing: brings an image to its square.
        vocabulary: encodes captions.
        spec: `config.data`.
        seed: of the order of images and captions.
        features: of the images of `split`, to take the place of pixels.
        context: of the images of `split`.
        process_index: which part of each global batch to make.
        process_count: how many parts there are.

    Raises:
        DataError: the split is empty, or the batch size is no multiple of the processes.
    """
    inputs = features or Pixels(split, preprocessing)
    return TrainBatches(split, inputs, vocabulary, spec, seed, context, process_index, process_count)


def eval_batches(
    split: Split,
    preprocessing: Preprocessing,
    vocabulary: EncodesCaptions,
    spec: DataSpec,
    *,
    context: ContextCaptions | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Returns one pass over a split, in order, each example exactly once over all processes.

    Batches are those of `train_batches`, with `eval_batch_size` images and each image's first captions. The last is
    filled up with rows of mask False and index -1; every process makes the same number of batches, and process p takes
    the p-th part of each. An unreadable image has mask False and its own index.
    """
    inputs = Pixels(split, preprocessing)
    return EvalBatches(split, inputs, vocabulary, spec, context, process_index, process_count)


class _Batches:
    """Assembles batches of examples that grain's threads read ahead, and keeps account of unreadable images."""

    def __init__(self, loader: _Loader, batch_size: int, process_index: int, process_count: int, workers: int):
        if batch_size < 1 or batch_size % process_count:
            raise DataError(
                f"a batch of {batch_size} images cannot be divided over {process_count} processes: set "
                "config.data.batch_size and config.data.eval_batch_size to a multiple of the processes"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not one of {process_count} processes")
        self.split = loader.split
        self.batch_size = batch_size
        self.local_size = batch_size // process_count
        self.problems: dict[str, str] = {}  # name of an unreadable image -> reason
        self.problem_count = 0  # rows that were masked for it, repetitions counted
        self._process_index = process_index
        self._loader = loader
        self._workers = workers
        self._readable = 0
        self._examples: Iterator[Example] | None = None

    def __iter__(self):
        return self

    def close(self) -> None:
        """Stops reading ahead. The iterator can go on afterwards, from where it was."""
        if self._examples is not None:
            self._examples.close()
        self._examples = None

    def _read(self, order: _Part) -> Iterator[Example]:
        ahead = max(2 * self._workers, self.local_size)
        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=ahead if self._workers else 0)
        return iter(grain.MapDataset.source(order).map(self._loader).to_iter_dataset(options))

    def _assemble(self, count: int) -> Batch:
        """Takes `count` examples; rows beyond them are padding."""
        inputs, rows = self._loader.inputs, self.local_size
        image = np.empty((rows, *inputs.shape), inputs.dtype)
        tokens = np.empty((rows, *self._loader.blank.shape), np.int32)
        context = None if self._loader.context is None else np.tile(self._loader.context.nothing, (rows, 1, 1))
        mask = np.zeros(rows, bool)
        index = np.full(rows, -1, np.int32)
        for row in range(count):
            example = self._next_example()
            index[row] = example.index
            tokens[row] = example.tokens
            if context is not None:
                context[row] = example.context
            if example.image is None:
                self._note(example)
            else:
                image[row] = example.image
                mask[row] = True
                self._readable += 1
        # Rows without an image repeat one that has: black squares would move the statistics of batch norms.
        image[~mask] = image[mask.argmax()] if mask.any() else 0
        tokens[count:] = self._loader.blank
        beside = {} if context is None else {"context": context}
        return {inputs.name: image, "tokens": tokens, **beside, "mask": mask, "index": index}

    def _next_example(self) -> Example:
        try:
            return next(self._examples)
        except BaseException:
            self.close()  # whoever tries again gets this batch from its start
            raise

    def _note(self, example: Example) -> None:
        name = self.split[example.index].name
        self.problem_count += 1
        if name not in self.problems:
            self.problems[name] = example.problem
            log.warning("Unreadable image left out: %s", example.problem)
        if not self._readable and len(self.problems) >= min(HOPELESS, len(self.split)):
            first = "\n  ".join(list(self.problems.values())[:SHOWN])
            raise DataError(f"none of the first {len(self.problems)} images can be read:\n  {first}")


class TrainBatches(_Batches):
    """Endless batches; see `train_batches`."""

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        vocabulary: EncodesCaptions,
        spec: DataSpec,
        seed: int,
        context: ContextCaptions | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        loader = _Loader(split, inputs, vocabulary, spec, seed, context)
        super().__init__(loader, spec.batch_size, process_index, process_count, spec.workers)
        self._order = _Shuffled(len(split), seed)
        ids = "\n".join(repr(image_id) for image_id in split.image_ids)
        self._sequence = {"seed": seed, "split": hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()}
        if context is not None:
            self._sequence["context"] = context.fingerprint()
        self._consumed = 0  # images, over all processes

    @property
    def epoch(self) -> float:
        """Passes over the images so far."""
        return self._consumed / len(self.split)

    def __next__(self) -> Batch:
        if self._examples is None:
            self._examples = self._read(
                _Part(self._order, self._consumed, self.batch_size, self.local_size, self._process_index)
            )
        batch = self._assemble(self.local_size)
        self._consumed += self.batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns a small dictionary for JSON: where the sequence of images stands, and which sequence it is.

        "split" is a hash of the image ids in order.

        It is the same on every process, and a run may go on with another number of processes or another batch size.
        """
        return {"images": self._consumed, **self._sequence}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where an iterator was when it gave this state; the next batch is the one it would have made.

        Raises:
            DataError: the state belongs to another sequence: other images, other context or another seed.
        """
        keys = [key for key in ("seed", "split", "context") if state.get(key) != self._sequence.get(key)]
        differs = [f"{key}: {state.get(key)} then, {self._sequence.get(key)} now" for key in keys]
        if differs:
            raise DataError(f"the saved place in the training data is of other data ({'; '.join(differs)})")
        self.close()
        self._consumed = int(state["images"])


class EvalBatches(_Batches):
    """One pass in order; see `eval_batches`. `len` is the number of batches."""

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        vocabulary: EncodesCaptions,
        spec: DataSpec,
        context: ContextCaptions | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        loader = _Loader(split, inputs, vocabulary, spec, None, context)
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
            self._examples = self._read(_Part(order, start, self.batch_size, self.local_size, self._process_index))
        left = len(self.split) - start - self._process_index * self.local_size
        batch = self._assemble(min(max(left, 0), self.local_size))
        self._batch += 1
        return batch


class _Part:
    """The positions of the global sequence that one process reads, as a source for grain."""

    def __init__(self, order, start: int, batch_size: int, local_size: int, process_index: int):
        self._order = order
        self._start = start
        self._batch_size = batch_size
        self._local_size = local_size
        self._offset = process_index * local_size
        batches, rest = divmod(len(order) - start, batch_size)
        self._length = batches * local_size + min(max(rest - self._offset, 0), local_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Returns (position in the global sequence, index of the record)."""
        batch, row = divmod(index, self._local_size)
        position = self._start + batch * self._batch_size + self._offset + row
        return position, self._order[position]


class _Shuffled:
    """The endless sequence of record indices: epoch after epoch, each in its own order."""

    def __init__(self, count: int, seed: int):
        if not count:
            raise DataError("the training split has no images")
        self._count = count
        self._epoch = functools.lru_cache(maxsize=3)(functools.partial(_epoch_order, count, seed))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        return int(self._epoch(epoch)[place])


def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    # Sorted by random numbers: NumPy promises the same raw numbers in every version, but not the same permutations.
    # (grain's own shuffle takes milliseconds an image on data sets of a few hundred.)
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=16).digest(), "big")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


class _Loader:
    """Makes an example of (position, record index); called by many threads at once."""

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        vocabulary: EncodesCaptions,
        spec: DataSpec,
        seed: int | None,
        context: ContextCaptions | None,
    ):
        self.split = split
        self.inputs = inputs
        self.context = context
        self._seed = seed
        self._captions = EncodedCaptions(split, vocabulary, spec.max_length)
        self._count = spec.captions_per_image or max((1, *(len(r.captions) for r in split)))
        empty = np.asarray(vocabulary.encode("", spec.max_length), np.int32)
        self.blank = np.tile(empty, (self._count, 1))

    def __call__(self, place: tuple[int, int]) -> Example:
        position, index = place
        record, epoch = self.split[index], position // len(self.split)
        tokens = self.blank
        if record.captions:
            chosen = range(self._count)
            if self._seed is not None:
                chosen = choose_captions(len(record.captions), self._count, self._seed, epoch, record.image_id)
            tokens = np.stack([self._captions[index, number % len(record.captions)] for number in chosen])
        context = None if self.context is None else self.context.load(record.image_id, self._seed, epoch)
        try:
            return Example(index, tokens, self.inputs.load(index, epoch), context)
        except ImageError as error:
            return Example(index, tokens, None, context, str(error))


def choose_captions(available: int, count: int, seed: int, epoch: int, image_id: str | int) -> list[int]:
    """Picks which of an image's captions an epoch uses.

    The captions stand in an order shuffled by (seed, image id), and each epoch takes the next `count` of them, round
    and round. So none comes twice in a step (unless there are fewer than `count`), and over the epochs all come
    equally often.

    Args:
        available: captions of the image, at least 1.
        count: captions to pick.
        seed: of the run.
        epoch: from 0.
        image_id: of the image.
    """
    return in_turn(available, count, f"{seed}/{image_id!r}", epoch)

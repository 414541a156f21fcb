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

Packed training batches (`packing.py`), with several captions per row, also contain

    inputs       int32 [rows, packed]: decoder input tokens
    targets      int32 [rows, packed]: the next token of each input token
    segment_ids  int32 [rows, packed]: 1-based index of the token's caption within its row; 0 for padding
    positions    int32 [rows, packed]: 0-based position of the token within its caption

If rows are divided into blocks, the shape of these arrays is [rows, blocks, block length].

`image_order` defines the order of images, `Shard` selects the images of one process, grain's threads load them with
`ExampleLoader`, several at a time, and `_Batches` assembles the arrays.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.captions import CaptionEncoder
from input_pipeline.context import ContextCaptions
from input_pipeline.data_spec import DataSpec
from input_pipeline.examples import ExampleLoader, Examples
from input_pipeline.extras import optional_packages
from input_pipeline.image_order import Draw, Shard, in_order, make_train_order
from input_pipeline.images import Preprocessing
from input_pipeline.inputs import Inputs
from input_pipeline.pixel_readers import make_pixels
from input_pipeline.records import DataError, Split
from input_pipeline.terminal_text import escape_message

Batch = dict[str, np.ndarray]  # the arrays listed in the module docstring

# If none of the first images can be read, an error is raised after this many, because the dataset is probably broken.
MAX_UNREADABLE = 32

log = logging.getLogger(__name__)


def train_batches(  # noqa: PLR0913 - the optional inputs are keyword-only
    split: Split,
    preprocessing: Preprocessing,
    vocabulary: CaptionEncoder,
    spec: DataSpec,
    seed: int,
    *,
    stored: Inputs | None = None,
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
        stored: stored features or pixels of the images in `split`; if None, the images are decoded.
        context: context captions of the images in `split`.
        process_index: index of this process, which determines its part of each global batch.
        process_count: number of processes.

    Raises:
        DataError: the split is empty, or the batch size is not a multiple of the number of processes.
    """
    inputs = stored or make_pixels(split, preprocessing, spec)
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
    inputs = make_pixels(split, preprocessing, spec)
    return EvalBatches(split, inputs, vocabulary, spec, context, process_index, process_count)


class _Batches:
    """Assembles batches of examples prefetched by grain's threads, and records unreadable images."""

    requires_readable = True  # whether it is an error if no image can be read

    def __init__(self, loader: ExampleLoader, batch_size: int, process_index: int, process_count: int, workers: int):
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
        self._examples: Iterator[Examples] | None = None

    def __iter__(self):
        return self

    def close(self) -> None:
        """Stops prefetching. Iteration may continue afterwards from the same position."""
        if self._examples is not None:
            self._examples.close()
            self._loader.inputs.close()
        self._examples = None

    def _iterate(self, order: Sequence[Draw], start: int) -> Iterator[Examples]:
        """Yields the rows of this process, from the global batch at position `start` of `order`."""
        rows = self._loader.inputs.rows_per_read(self.local_size)
        reads_per_batch = -(-self.local_size // rows)
        # A read of a whole batch needs so much memory, and so little time, that two of them are enough.
        buffer_size = max(2 * self._workers, reads_per_batch) if reads_per_batch > 1 else 2
        threads = min(self._workers, buffer_size)
        with optional_packages("reading batches of images"):
            import grain

        shard = Shard(order, start, self.batch_size, self.local_size, self._process_index, rows)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer_size if threads else 0)
        return iter(grain.MapDataset.source(shard).map(self._loader).to_iter_dataset(options))

    def _assemble(self, count: int) -> Batch:
        """Assembles a batch of `count` examples; the remaining rows are padding."""
        inputs, rows = self._loader.inputs, self.local_size
        image = None
        tokens = np.empty((rows, *self._loader.blank.shape), np.int32)
        context = None if self._loader.context is None else np.tile(self._loader.context.empty, (rows, 1, 1))
        mask = np.zeros(rows, bool)
        index = np.full(rows, -1, np.int32)
        row = 0
        while row < count:
            examples = self._next_examples()
            filled = slice(row, row + len(examples.indices))
            index[filled], tokens[filled], mask[filled] = examples.indices, examples.tokens, True
            if context is not None:
                context[filled] = examples.context
            self._record_problems(examples)
            mask[[row + problem for problem in examples.problems]] = False
            if isinstance(examples.inputs, np.ndarray) and len(examples.inputs) == rows:
                image = examples.inputs  # the whole batch, so that it need not be copied
            else:
                image = np.empty((rows, *inputs.shape), inputs.dtype) if image is None else image
                _copy_rows(examples, image[filled])
            row = filled.stop
        image = np.empty((rows, *inputs.shape), inputs.dtype) if image is None else image
        # Rows without an image repeat a valid one, because black images would bias the batch norm statistics.
        image[~mask] = image[mask.argmax()] if mask.any() else 0
        tokens[count:] = self._loader.blank
        optional = {} if context is None else {"context": context}
        return {inputs.name: image, "tokens": tokens, **optional, "mask": mask, "index": index}

    def _next_examples(self) -> Examples:
        try:
            return next(self._examples)
        except BaseException:
            self.close()  # a retry starts this batch from its first example
            raise

    def _record_problems(self, examples: Examples) -> None:
        self._readable += len(examples.indices) - len(examples.problems)
        for row, problem in examples.problems.items():
            name = self.split[examples.indices[row]].name
            self.problem_count += 1
            if name not in self.problems:
                self.problems[name] = str(problem)
                log.warning("Skipping unreadable image: %s", problem)
        is_broken = not self._readable and len(self.problems) >= min(MAX_UNREADABLE, len(self.split))
        if is_broken and self.requires_readable:
            first = escape_message(next(iter(self.problems.values())))
            raise DataError(
                f"none of the first {len(self.problems)} images of the split {self.split.name} could be read, such as "
                f"{first}: check that the disk with the images is mounted, and that the files are images"
            )


def _copy_rows(examples: Examples, image: np.ndarray) -> None:
    """Copies the pixels or features of readable images to `image` [rows, ...]."""
    if isinstance(examples.inputs, np.ndarray):
        image[:] = examples.inputs
        return
    for row, array in enumerate(examples.inputs):
        if array is not None:
            image[row] = array


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
        loader = ExampleLoader(split, inputs, vocabulary, spec, seed, context)
        super().__init__(loader, spec.batch_size, process_index, process_count, spec.workers)
        self._order = make_train_order(split, spec.shuffle_window, seed)
        ids = "\n".join(repr(image_id) for image_id in split.image_ids)
        self._sequence = {"seed": seed, "split": hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()}
        if self._order.fingerprint:
            self._sequence["order"] = self._order.fingerprint
        if context is not None:
            self._sequence["context"] = context.fingerprint()
        self._consumed = 0  # images, summed over all processes

    @property
    def epoch(self) -> float:
        """Number of epochs completed so far, including the fraction of the current epoch."""
        return self._consumed / len(self.split)

    def __next__(self) -> Batch:
        if self._examples is None:
            self._examples = self._iterate(self._order, self._consumed)
        batch = self._assemble(self.local_size)
        self._consumed += self.batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the number of consumed images and the identity of their sequence, as a JSON-compatible dictionary.

        "split" is a hash of the image ids in order, and "order" of what else determines the sequence, if it is not a
        shuffle of the whole split. The state is the same on every process, and a run may resume with a different number
        of processes or batch size.
        """
        return {"images": self._consumed, **self._sequence}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state returned by `get_state`; iteration resumes with the batch after it.

        Raises:
            DataError: the state is from a different sequence (images, order, context or seed differ).
        """
        keys = [key for key in ("seed", "split", "order", "context") if state.get(key) != self._sequence.get(key)]
        differences = [f"{key}: saved {state.get(key)}, current {self._sequence.get(key)}" for key in keys]
        if differences:
            raise DataError(
                f"the saved data iterator state is from different data ({'; '.join(differences)}): restore the data, "
                "or set --allow_data_change to continue with the current data"
            )
        self.close()
        self._consumed = int(state["images"])


class EvalBatches(_Batches):
    """Iterator over one ordered pass; see `eval_batches`. Its length is the number of batches."""

    requires_readable = False  # unreadable images count as empty captions, even if there are no others

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
        loader = ExampleLoader(split, inputs, vocabulary, spec, None, context)
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
            self._examples = self._iterate(in_order(len(self.split)), start)
        remaining = len(self.split) - start - self._process_index * self.local_size
        batch = self._assemble(min(max(remaining, 0), self.local_size))
        self._batch += 1
        return batch

"""Processes that read and decode images, for machines on which Python's interpreter lock limits the threads.

A process only turns files into pixels. The order of images, the batches and the saved position belong to the training
process, so the number of processes can change when a run resumes. The processes are started as commands, not by
`multiprocessing`, which would import the main module again in each of them.

    python -m input_pipeline.decoding_process PIXELS LOCKS PROCESSES

reads requests from standard input and writes replies to standard output, both pickled. PIXELS and LOCKS are file
descriptors: of the shared memory for the pixels, and of a file for locks, which keep the memory of large images that
all PROCESSES decode at the same time below `config.limits.decoding_bytes`.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from input_pipeline.decoding_memory import BUDGET
from input_pipeline.errors import UserError
from input_pipeline.images import ImageError, Preprocessing

_EXIT_SECONDS = 10  # after which a process that does not end is killed

_opening = threading.Lock()  # held while the lock file is opened


class Request(NamedTuple):
    """Images to decode.

    Attributes:
        sources: path or encoded bytes of each image.
        names: name of each image in error messages.
        preprocessing: preprocessing of images.
    """

    sources: list[Path | bytes]
    names: list[str]
    preprocessing: Preprocessing


class DecodingProcessError(UserError, RuntimeError):
    """A process that decodes images ended or failed."""


class DecodingProcess:
    """A process that decodes images. Not thread-safe.

    Args:
        max_bytes: maximum size of the pixels of one request.
        processes: number of processes that decode images at the same time, including this one.
    """

    def __init__(self, max_bytes: int, processes: int = 1):
        locks = _open_lock_file()
        with _create_shared_file() as file:
            file.truncate(max_bytes)
            self._memory = np.frombuffer(mmap.mmap(file.fileno(), max_bytes), np.uint8)
            # A new session, because Ctrl-C and signals of a scheduler are meant for the training process, which saves
            # its state and then ends this process.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(file.fileno()), str(locks.fileno()), str(processes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": _python_path()},
                pass_fds=(file.fileno(), locks.fileno()),
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _end, self._process)

    def decode(self, request: Request) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the pixels uint8 [images, size, size, 3], and why each unreadable image cannot be read, by row.

        Raises:
            DecodingProcessError: the process ended, or raised an error that is not a property of the image.
        """
        size = request.preprocessing.size
        try:
            pickle.dump(request, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            problems, error = pickle.load(self._process.stdout)
        except (EOFError, OSError) as failure:
            raise DecodingProcessError(self._describe_end()) from failure
        if error:
            raise DecodingProcessError(f"a process that decodes images failed:\n{error}")
        count = len(request.sources)
        return self._memory[: 3 * count * size**2].reshape(count, size, size, 3).copy(), problems

    def close(self) -> None:
        """Ends the process. Idempotent."""
        self._finalizer()

    def _describe_end(self) -> str:
        status = self._process.wait()
        reason = f"exited with status {status}"
        if status < 0:
            reason = f"was ended by {signal.Signals(-status).name}"
        return (
            f"a process that decodes images {reason}; if the machine is short of memory, lower config.data.workers "
            'or config.limits.decoding_bytes, or set config.data.worker_type to "threads"'
        )


def _create_shared_file() -> BinaryIO:
    """Creates a file without a name, in memory if the platform supports it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("pixels"), "r+b")
    return tempfile.TemporaryFile()


@functools.cache
def _cached_lock_file() -> BinaryIO:
    return _create_shared_file()


def _open_lock_file() -> BinaryIO:
    """Returns the file for locks of all processes that this process starts. Thread-safe."""
    with _opening:  # functools.cache alone lets two threads open one each
        return _cached_lock_file()


def _python_path() -> str:
    """Returns the search path of modules of this process, so that the other process imports the same code."""
    return os.pathsep.join(dict.fromkeys([str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)]))


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):  # the process may have ended
        process.stdin.close()  # the end of the requests
    process.stdout.close()
    try:
        process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(memory: memoryview, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers requests until there are no more."""
    while True:
        try:
            request: Request = pickle.load(requests)
        except EOFError:
            return
        try:
            reply = _decode(request, memory), ""
        except Exception as error:  # reported by the training process
            reply = {}, f"{type(error).__name__}: {error}"
        pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()


def _decode(request: Request, memory: memoryview) -> dict[int, str]:
    """Decodes the images of a request to `memory`, and returns why images cannot be read, by row."""
    shape = (len(request.sources), request.preprocessing.size, request.preprocessing.size, 3)
    pixels = np.frombuffer(memory, np.uint8, int(np.prod(shape))).reshape(shape)
    problems = {}
    for row, (source, name) in enumerate(zip(request.sources, request.names, strict=True)):
        try:
            pixels[row] = request.preprocessing.load(source, name=name)
        except ImageError as error:
            problems[row] = error.reason
    return problems


def main() -> None:
    """Runs in the other process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pixels, locks, processes = map(int, sys.argv[1:])
    BUDGET.share_with_processes(processes, os.fdopen(locks, "r+b"))
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is not a reply
    serve(memoryview(mmap.mmap(pixels, 0)), sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()

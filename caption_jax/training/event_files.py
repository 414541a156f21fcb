"""Event files for TensorBoard, written without TensorFlow: importing that takes longer than anything else at a start.

An event file is a sequence of records, each a protocol buffer `Event` framed as TFRecord does it: length, checksum of
the length, the event, its checksum. Values are tensors with the name of the plugin that shows them, as TensorFlow 2
writes them.
"""

from __future__ import annotations

import io
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image


class EventFile:
    """Writes numbers, pictures and texts of steps to one new file, in a thread of its own.

    Args:
        folder: of the event files, local or on a bucket; made if need be.

    Raises:
        OSError: from any method: what was given earlier could not be written.
    """

    def __init__(self, folder: epath.PathLike):
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2

        self._event, self._summary, self._tensor, self._types = event_pb2, summary_pb2, tensor_pb2, types_pb2
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._queue: queue.Queue = queue.Queue()
        self._errors: list[OSError] = []
        self._thread = threading.Thread(target=self._work, args=(folder / name,), name="events", daemon=True)
        self._thread.start()
        self._queue.put(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers under their names."""
        self._add(step, "scalars", ((name, self._floats(value)) for name, value in values.items()))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, uint8 [height, width, 3] each."""
        self._add(step, "images", ((name, self._strings(_png_summary(image))) for name, image in images.items()))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, Markdown."""
        self._add(step, "text", ((name, self._strings([text.encode()], [1])) for name, text in texts.items()))

    def close(self) -> None:
        """Returns when all is written."""
        self._queue.put(None)
        self._thread.join()
        self._check()

    def _add(self, step: int, plugin: str, values: Iterable[tuple[str, Any]]) -> None:
        self._check()
        about = self._summary.SummaryMetadata
        metadata = about(plugin_data=about.PluginData(plugin_name=plugin))
        of_step = self._summary.Summary(
            value=[self._summary.Summary.Value(tag=name, metadata=metadata, tensor=tensor) for name, tensor in values]
        )
        self._queue.put(self._event.Event(wall_time=time.time(), step=step, summary=of_step))

    def _floats(self, value: float) -> Any:
        return self._tensor.TensorProto(dtype=self._types.DT_FLOAT, float_val=[value])

    def _strings(self, values: list[bytes], shape: list[int] | None = None) -> Any:
        tensor = self._tensor.TensorProto(dtype=self._types.DT_STRING, string_val=values)
        for size in shape or [len(values)]:
            tensor.tensor_shape.dim.add(size=size)
        return tensor

    def _check(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _work(self, path: epath.Path) -> None:
        local = "://" not in os.fspath(path)
        written = bytearray()  # of a bucket's object, which can only be written anew
        while (event := self._queue.get()) is not None:
            events = [event]
            while not self._queue.empty() and events[-1] is not None:
                events.append(self._queue.get())
            ended = events[-1] is None
            new = b"".join(_record(event.SerializeToString()) for event in events if event is not None)
            try:
                if local:
                    with open(path, "ab") as file:
                        file.write(new)
                else:
                    written += new
                    path.write_bytes(bytes(written))
            except OSError as error:
                self._errors.append(error)
            if ended:
                return


def _png_summary(image: np.ndarray) -> list[bytes]:
    """What TensorBoard's plugin for images reads: width, height and the picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    height, width = image.shape[:2]
    return [str(width).encode(), str(height).encode(), buffer.getvalue()]


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _checksum(length)) + data + struct.pack("<I", _checksum(data))


def _checksum(data: bytes) -> int:
    """TFRecord's: CRC-32C (Castagnoli), rotated and offset."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()

"""Errors of disks are recognised in exceptions of any type and reported in one line."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from input_pipeline.disk_faults import find_disk_fault, format_bytes, reported_disk_faults
from input_pipeline.errors import ConfigError, StorageError
from input_pipeline.files import write_atomically

ORBAX = (
    'RESOURCE_EXHAUSTED: Error opening "zarr" driver: Error writing "params.a/.zarray" in OCDBT database at local file '
    '"/runs/a/checkpoints/last/5/d/": Failed to write: /runs/a/checkpoints/last/5/d/ab12 [OS error 28: ENOSPC No space '
    "left on device] [source locations='tensorstore/internal/os/file_util_posix.cc:1']"
)


def raise_while_handling(first: Exception, second: Exception) -> Exception:
    """Returns `second`, raised while `first` was handled."""
    try:
        try:
            raise first
        except Exception:
            raise second  # noqa: B904
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "number", "path"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a/eval.json"), errno.ENOSPC, "/runs/a/eval.json"),
        (OSError(errno.EROFS, "Read-only file system", b"/runs/a"), errno.EROFS, "/runs/a"),
        (ValueError(ORBAX), errno.ENOSPC, "/runs/a/checkpoints/last/5/d/"),
        (RuntimeError("/a/b.tfevents; Disk quota exceeded"), errno.EDQUOT, "/a/b.tfevents"),
        (OSError("4096 requested and 100 written"), errno.ENOSPC, ""),
        (ExceptionGroup("threads", [KeyError("x"), OSError(errno.EIO, "Input/output error", "/a")]), errno.EIO, "/a"),
        (raise_while_handling(OSError(errno.ENOSPC, "", "/a"), RuntimeError("closed")), errno.ENOSPC, "/a"),
    ],
)
def test_faults_are_found_in_errors_of_libraries(error, number, path):
    fault = find_disk_fault(error)
    assert (fault.number, fault.path) == (number, path)
    assert os.strerror(number) in fault.describe() and "\n" not in fault.describe()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes differ"),
        FileNotFoundError(errno.ENOENT, "No such file", "/a"),
        raise_while_handling(PermissionError(errno.EACCES, "Permission denied", "/a"), KeyError("bug")),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"),
        ConnectionError("Permission denied"),
    ],
)
def test_other_errors_are_not_mistaken_for_faults_of_a_disk(error):
    assert find_disk_fault(error) is None
    with pytest.raises(type(error)), reported_disk_faults():
        raise error


def test_the_message_of_a_full_disk_has_the_needed_and_the_free_space(tmp_path):
    file = tmp_path / "checkpoints" / "5"
    with pytest.raises(StorageError) as error, reported_disk_faults(lambda path: 3_400_000 if "5" in path else 0):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))
    message = str(error.value)
    assert message.startswith(f"{file}: No space left on device (about 3.4 MB are needed, ")
    assert message.endswith(" are free): free space, then run the same command again")


def test_errors_of_the_user_are_unchanged():
    with pytest.raises(ConfigError, match="a key"), reported_disk_faults():
        raise ConfigError("a key") from OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_names_the_file_and_not_the_temporary_one(tmp_path):
    def fill_disk(file) -> None:
        file.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as error:
        write_atomically(tmp_path / "eval.json", fill_disk)
    assert find_disk_fault(error.value).path == str(tmp_path / "eval.json")
    with pytest.raises(OSError) as error:
        write_atomically(tmp_path / "missing" / "eval.json", "")
    assert error.value.filename == str(tmp_path / "missing" / "eval.json")


def test_numpy_reports_a_full_disk_without_a_number():
    """The text on which `find_disk_fault` depends."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as error:
        np.zeros(100_000).tofile(file)
    assert find_disk_fault(error.value).number == errno.ENOSPC


def test_sizes_have_units():
    assert [format_bytes(count) for count in (12_400, 3_400_000, 1.2e9)] == ["12 kB", "3.4 MB", "1.20 GB"]

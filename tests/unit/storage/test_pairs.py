"""Files with secrets: who may read them, that they are whole, and what is remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from posthouse.errors import StorageBroken
from posthouse.storage.pairs import (
    MAX_FILE_BYTES,
    UsedHashes,
    is_open_to_others,
    read_private,
    write_private,
)

ONE, TWO = hashlib.sha256(b"1").digest(), hashlib.sha256(b"2").digest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    """A fresh file has mode 0600 whatever the umask, and nothing else is left behind."""
    path = tmp_path / "pair.json"
    before = os.umask(0)
    try:
        write_private(path, b"secret", replace=False)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_private(path) == b"secret"
    assert names(tmp_path) == ["pair.json"]
    assert not is_open_to_others(path)


def test_replacing(tmp_path: Path) -> None:
    """A file is replaced only when that is wanted; the group that may read it still may."""
    path = tmp_path / "pair.json"
    write_private(path, b"one", replace=True)
    with pytest.raises(FileExistsError):
        write_private(path, b"two", replace=False)
    assert read_private(path) == b"one"
    path.chmod(0o644)
    assert is_open_to_others(path)
    write_private(path, b"two", replace=True)
    assert read_private(path) == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["pair.json"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """It is an OSError that names the place."""
    with pytest.raises(FileNotFoundError):
        write_private(tmp_path / "no" / "pair.json", b"x", replace=False)


def test_odd_files_are_not_read(tmp_path: Path) -> None:
    """Neither a FIFO (without waiting for a writer) nor an endless file."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="regular"):
        read_private(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ValueError, match="larger"):
        read_private(tmp_path / "large")


def test_hashes_are_remembered(tmp_path: Path) -> None:
    """What was added is known after a restart, once for ever."""
    path = tmp_path / "used"
    used = UsedHashes(path)
    assert ONE not in used
    used.add(ONE)
    used.add(TWO)
    used.add(ONE)
    again = UsedHashes(path)
    assert ONE in again
    assert TWO in again
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"zz\n", b"00\n", b"\xff\xff"])
def test_a_damaged_memory_is_told(tmp_path: Path, content: bytes) -> None:
    """It is not taken for an empty one: used offers would be good again."""
    (tmp_path / "used").write_bytes(content)
    with pytest.raises(StorageBroken):
        UsedHashes(tmp_path / "used")


def test_a_memory_that_cannot_be_written(tmp_path: Path) -> None:
    """The use counts for this process, and the caller hears of it."""
    used = UsedHashes(tmp_path / "no" / "used")
    with pytest.raises(StorageBroken):
        used.add(ONE)
    assert ONE in used

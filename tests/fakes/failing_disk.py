"""Disks that fail on demand, or remember what a power cut would leave; and a small spool user.

Both write to real files: only the failure, or the loss, is made up.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import QueuedMessage, Selection, Spool
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings
from posthouse.storage.spool_disk import Disk

T0 = 1_700_000_000_000_000
CLIENT = Client(address="192.0.2.1", port=4711, helo="helo.example", protocol="ESMTP")


class FailingDisk(Disk):
    """`faults`: for each method an errno that it raises as long as it stands there.

    `only`: methods fail for paths that contain this text alone.
    """

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.only = ""
        self.free_bytes: int | None = None

    def _maybe_fail(self, method: str, where: Path | int) -> None:
        code = self.faults.get(method)
        if code is None:
            return
        path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else str(where)
        if self.only in path:
            raise OSError(code, os.strerror(code), path)

    def create(self, path: Path) -> int:
        self._maybe_fail("create", path)
        return super().create(path)

    def pwritev(self, fd: int, buffers: Sequence[bytes], at: int) -> int:
        self._maybe_fail("pwritev", fd)
        return super().pwritev(fd, buffers, at)

    def flush(self, fd: int) -> None:
        self._maybe_fail("flush", fd)
        super().flush(fd)

    def flush_directory(self, path: Path) -> None:
        self._maybe_fail("flush_directory", path)
        super().flush_directory(path)

    def truncate(self, fd: int, size: int) -> None:
        self._maybe_fail("truncate", fd)
        super().truncate(fd, size)

    def unlink(self, path: Path) -> None:
        self._maybe_fail("unlink", path)
        super().unlink(path)

    def room(self, path: Path) -> os.statvfs_result:
        self._maybe_fail("room", path)
        found = super().room(path)
        if self.free_bytes is None:
            return found
        values = list(found)
        values[4] = self.free_bytes // found.f_frsize  # f_bavail
        return os.statvfs_result(values)


class DribblingDisk(Disk):
    """Writes only a few octets at a time, as a nearly full or interrupted disk may."""

    def pwritev(self, fd: int, buffers: Sequence[bytes], at: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[:7], at)


@dataclass
class Image:
    """Files as a cut of the power might leave them: path below the shard → content."""

    step: str
    files: dict[str, bytes]
    promised: frozenset[int]
    """Queue ids that had been answered by then and that nothing had asked to remove."""
    removed: frozenset[int]
    """Queue ids whose removal had been answered by then."""

    def restore(self, directory: Path) -> None:
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass
class CutDisk(Disk):
    """Takes an image around every call: what is flushed, and with what else there may be.

    Images "lost" and "undone" hold the files whose unlinking no flush of a directory followed.
    """

    directory: Path
    promised: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    images: list[Image] = field(default_factory=list)
    recording: bool = False
    _flushed: dict[str, bytes] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)
    _unlinked: dict[str, bytes] = field(default_factory=dict)

    def begin(self) -> None:
        """What is there now is durable; record from here on."""
        for path in self._paths():
            self._flushed[path] = (self.directory / path).read_bytes()
            self._named.add(path)
        self.recording = True

    def _paths(self) -> list[str]:
        return [
            str(path.relative_to(self.directory))
            for path in self.directory.rglob("*")
            if path.is_file() and path.suffix in {".db", ".db-wal", ".seg", ".msg"}
        ]

    def snap(self, step: str) -> None:
        """Take the images of this instant: what was not flushed is lost, cut, in holes, kept."""
        if not self.recording:
            return
        promised, removed = frozenset(self.promised), frozenset(self.removed)
        kinds = ("lost", "half", "holes", "kept", "undone")
        images: dict[str, dict[str, bytes]] = {kind: {} for kind in kinds}
        images["lost"].update(self._unlinked)
        images["undone"].update(self._unlinked)
        for path in self._paths():
            try:
                now = (self.directory / path).read_bytes()
            except FileNotFoundError:
                continue
            flushed = self._flushed.get(path, b"")
            images["kept"][path] = images["undone"][path] = now
            if path == "spool.db" or path.endswith("-wal") or path in self._named:
                images["lost"][path] = flushed
            fresh = now[len(flushed) :]
            images["half"][path] = flushed + fresh[: len(fresh) // 2]
            hole = min(600, len(fresh) // 3)  # blocks reach a disk in any order
            images["holes"][path] = flushed + fresh[:hole] + bytes(hole) + fresh[2 * hole :]
        promised &= self.promised  # another thread may have gone on meanwhile
        for kind, files in images.items():
            self.images.append(Image(f"{step}, {kind}", files, promised, removed))

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.snap(f"create {path.name}")
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes], at: int) -> int:
        written = super().pwritev(fd, buffers, at)
        self.snap("pwritev")
        return written

    def flush(self, fd: int) -> None:
        self.snap("before flush")
        super().flush(fd)
        if self.recording:
            path = str(Path(os.readlink(f"/proc/self/fd/{fd}")).relative_to(self.directory))
            self._flushed[path] = (self.directory / path).read_bytes()
            self.snap(f"after flush of {path}")

    def flush_directory(self, path: Path) -> None:
        super().flush_directory(path)
        if self.recording:
            self._named.update(self._paths())
            below = f"{path.relative_to(self.directory)}/"
            for name in [name for name in self._unlinked if name.startswith(below)]:
                del self._unlinked[name]

    def unlink(self, path: Path) -> None:
        name = str(path.relative_to(self.directory))
        if self.recording and name in self._named:
            self._unlinked[name] = path.read_bytes()
        super().unlink(path)
        self.snap(f"unlink {path.name}")


class Ticks:
    """A clock that moves a microsecond whenever it is read."""

    def __init__(self, now_us: int = T0) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        self.now_us += 1
        return self.now_us


def small_settings(**changes: int | float) -> SpoolSettings:
    """Small limits, so that little mail reaches them; no rest after a failure."""
    values: dict[str, int | float] = {
        "segment_bytes": 64 << 10,
        "spill_bytes": 8 << 10,
        "min_free_bytes": 0,
        "retry_seconds": 0.01,
        "compact_seconds": 3600.0,
        "compact_bytes": 1 << 10,
    }
    return SpoolSettings(**{**values, **changes})  # type: ignore[arg-type]


async def open_spool(
    directory: Path,
    disk: Disk | None = None,
    *,
    settings: SpoolSettings | None = None,
    clock_us: Callable[[], int] | None = None,
) -> EmbeddedSpool:
    """Open shard 0 in `directory` with small limits."""
    return await EmbeddedSpool.open(
        directory,
        shard=0,
        settings=settings or small_settings(),
        clock_us=clock_us or Ticks(),
        disk=disk,
    )


async def accept(spool: Spool, body: bytes, *addresses: str) -> int:
    """Put in one message, in pieces; returns its queue id."""
    incoming = spool.begin()
    try:
        for at in range(0, len(body), 4096):
            if not incoming.write(body[at : at + 4096]):
                await incoming.drain()
        recipients = tuple(
            Recipient(address=address, domain=address.rpartition("@")[2])
            for address in addresses or ("user@example.com",)
        )
        envelope = Envelope(sender="a@sender.example", recipients=recipients)
        await spool.commit(incoming, envelope=envelope, client=CLIENT)
    finally:
        incoming.discard()
    return incoming.queue_id


async def read_body(spool: Spool, queue_id: int) -> bytes:
    """The whole stored body."""
    body = await spool.open_body(queue_id)
    try:
        return b"".join([piece async for piece in _pieces(body)])
    finally:
        body.close()


async def _pieces(body: object):  # type: ignore[no-untyped-def]
    while piece := await body.read(65536):  # type: ignore[attr-defined]
        yield piece


async def everything(spool: Spool) -> dict[int, QueuedMessage]:
    """All messages, by queue id."""
    found = await spool.list_messages(Selection(), after=None, limit=100_000)
    return {message.queue_id: message for message in found}


IO_ERROR = errno.EIO
NO_SPACE = errno.ENOSPC
READ_ONLY = errno.EROFS
TOO_MANY_FILES = errno.EMFILE

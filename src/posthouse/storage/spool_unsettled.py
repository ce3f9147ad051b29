"""Recipients whose row cannot be removed although their mail was delivered.

A damaged page of the database may refuse every change. What was delivered must not be
sent again for that, so such recipients are remembered in a small file beside the
database, and claims leave them out.
"""

from __future__ import annotations

import os
from pathlib import Path

from posthouse.mail.queueid import format_queue_id, parse_queue_id
from posthouse.storage.spool_disk import Disk, write_all

Key = tuple[int, int]
_END = " delivered"  # without it a line is torn, and its number perhaps another


class Unsettled:
    """`keys`: queue id and seq of what claims leave out. Added to by the writer thread alone."""

    def __init__(self, path: Path, disk: Disk) -> None:
        """Read what was remembered. Raises OSError."""
        self._path = path
        self._disk = disk
        self.keys: set[Key] = set()
        try:
            text = path.read_text("ascii", "replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            name, _, seq = line.removesuffix(_END).partition(" ")
            queue_id = parse_queue_id(name)
            if queue_id is not None and seq.isdecimal() and line.endswith(_END):
                self.keys.add((queue_id, int(seq)))

    def leave_out(self, key: Key) -> None:
        """Keep out of claims as long as this process lives."""
        self.keys.add(key)

    def remember(self, keys: list[Key]) -> None:
        """Keep out of claims for good. Raises OSError: not durable."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            self.keys.update(keys)
            raise
        try:
            lines = "".join(
                f"\n{format_queue_id(queue_id)} {seq}{_END}\n" for queue_id, seq in keys
            )
            write_all(self._disk, fd, [lines.encode("ascii")], os.fstat(fd).st_size)
            self._disk.flush(fd)
        finally:
            self.keys.update(keys)
            os.close(fd)
        self._disk.flush_directory(self._path.parent)

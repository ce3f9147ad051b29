"""States of next hops over a restart: one small JSON file, swapped whole.

A crash leaves the one or the other. A file that cannot be read is put aside and
reported: the node begins with probes, as it does without one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from posthouse import observe
from posthouse.errors import StorageBroken
from posthouse.ports_drain import NextHopRecord

MAX_BYTES: Final = 64 << 20


class NextHopFile:
    """See `ports_drain.NextHopBook`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Sequence[NextHopRecord]:
        """See `ports_drain.NextHopBook`."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES)
            return msgspec.json.decode(data, type=tuple[NextHopRecord, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            observe.trouble("drain", f"{self._path.name} cannot be read, it is put aside", error)
            with contextlib.suppress(OSError):
                os.replace(self._path, self._path.with_suffix(".damaged"))
            return ()

    def save(self, records: Sequence[NextHopRecord]) -> None:
        """See `ports_drain.NextHopBook`."""
        draft = self._path.with_suffix(".new")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode(tuple(records)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StorageBroken(f"{self._path}: {error}") from error

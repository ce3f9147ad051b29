"""Slow digests that were computed before, so that a roster costs only its changes.

Records of MAC and digest are appended as they are computed: a build of hours that
is interrupted goes on where it was. What no roster names any more is dropped when
the file is rewritten. A file for another scheme, salt or length is begun anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Final

import msgspec

from posthouse.domain.digests import make_stretch
from posthouse.mail.roster import ScryptDigest
from posthouse.storage.whole_files import storage_errors

MAC_BYTES: Final = 32
_AT_ONCE: Final = 64


class DigestCache:
    """MAC → digest, for one scheme. `with` it."""

    def __init__(self, path: Path, scheme: ScryptDigest) -> None:
        """Read what is there. Raises StorageError."""
        self._path = path
        self._scheme = scheme
        self._head = b"posthouse-digests 1 " + msgspec.json.encode(scheme) + b"\n"
        self._known: dict[bytes, bytes] = {}
        self._file: IO[bytes]
        with storage_errors(path):
            self._open()

    def _open(self) -> None:
        width = MAC_BYTES + self._scheme.length
        with contextlib.suppress(FileNotFoundError):
            data = self._path.read_bytes()
            if data.startswith(self._head):
                start = len(self._head)
                whole = (len(data) - start) // width * width + start
                for at in range(start, whole, width):
                    self._known[data[at : at + MAC_BYTES]] = data[at + MAC_BYTES : at + width]
                os.truncate(self._path, whole)  # a record that was cut short by a crash
                self._file = self._path.open("ab")
                return
        descriptor = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        self._file = os.fdopen(descriptor, "wb")
        self._file.write(self._head)

    def __enter__(self) -> DigestCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    def stretch(
        self, macs: Iterable[bytes], *, threads: int, tell: Callable[[int, int], None]
    ) -> Iterator[bytes]:
        """The digests of MACs, those computed before first. tell: (done, all) of the slow ones.

        Raises StorageError, and what `tell` raises; what was computed is kept.
        """
        missing = []
        for mac in macs:
            known = self._known.get(mac)
            if known is None:
                missing.append(mac)
            else:
                yield known
        if not missing:
            return
        stretch = make_stretch(self._scheme)
        rest = iter(missing)
        done = 0
        with ThreadPoolExecutor(threads) as pool:  # scrypt lets go of the interpreter
            while some := list(islice(rest, _AT_ONCE)):
                digests = list(pool.map(stretch, some))
                self._remember(some, digests)
                done += len(some)
                tell(done, len(missing))
                yield from digests

    def _remember(self, macs: list[bytes], digests: list[bytes]) -> None:
        with storage_errors(self._path):
            self._known.update(zip(macs, digests, strict=True))
            self._file.write(
                b"".join(mac + digest for mac, digest in zip(macs, digests, strict=True))
            )
            self._file.flush()

    def keep_only(self, macs: set[bytes]) -> None:
        """Forget people who are gone, when they are more than a few. Raises StorageError."""
        gone = len(self._known) - len(macs)
        if gone * 10 <= len(macs):
            return
        self._known = {mac: digest for mac, digest in self._known.items() if mac in macs}
        with storage_errors(self._path):
            draft = self._path.with_name(".new-" + self._path.name)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._head)
                file.writelines(mac + digest for mac, digest in self._known.items())
            os.replace(draft, self._path)
            self._file.close()
            self._file = self._path.open("ab")

"""The rosters of one domain and key that a primary has published.

One directory holds them::

    <serial>.roster    the one in force is the highest; the one before stays for who is reading it
    <serial>.step      what changed from the serial before, so that deltas can be made
    state.json         salt, secret of the decoys, the highest serial that was ever used
    lock               held while a roster is made

Files are never changed, only added, renamed into place, and removed. A crash at
any point leaves the old roster or the new one in force.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from posthouse.domain.roster_build import SECRET_BYTES, DecoyRange, Step
from posthouse.errors import StorageBroken, StorageBusy
from posthouse.storage.roster_body import RosterBody
from posthouse.storage.whole_files import storage_errors

SALT_BYTES: Final = 16
# A backup that asked a year ago, of rosters that change every hour, gets the whole file.
MAX_STEPS: Final = 2000
_KEPT_ROSTERS: Final = 2
_MAX_NAME: Final = 200
_STEP_MAGIC: Final = b"posthouse-step 1\n"
_SERIAL: Final = re.compile(r"([1-9][0-9]{0,15})\.(roster|step)")


class ShelfState(msgspec.Struct, kw_only=True):
    """What has to be remembered between two rosters."""

    salt: bytes
    decoy_secret: bytes
    decoys: DecoyRange = DecoyRange()
    highest: int = 0


class _StepHead(msgspec.Struct, frozen=True, kw_only=True):
    from_serial: int
    to_serial: int
    removed_bytes: int
    added_bytes: int
    sha256: str


def open_shelf(directory: Path, domain: str, key_id: str) -> RosterShelf:
    """The shelf of a domain and key below a directory; it need not exist yet."""
    name = domain
    if len(domain) > _MAX_NAME:  # file names have 255 octets
        name = f"{domain[:100]}-{hashlib.sha256(domain.encode()).hexdigest()[:32]}"
    return RosterShelf(directory / name / key_id)


class RosterShelf:
    """One domain and one key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # ------------------------------------------------------------------ reading

    def find_serial(self) -> int:
        """Of the roster in force; 0 without one."""
        return max(self._list("roster"), default=0)

    def path_of(self, serial: int) -> Path:
        """Where a roster lies."""
        return self.directory / f"{serial}.roster"

    def open_body(self, serial: int) -> RosterBody:
        """A roster, to be closed by the caller. Raises StorageBroken, OSError."""
        return RosterBody(self.path_of(serial), None)

    def find_chain(self, since: int, serial: int) -> list[Step] | None:
        """The steps from one serial to another, in order; None when one is missing or damaged."""
        chain: list[Step] = []
        at = serial
        while at != since:
            if at < since or len(chain) >= MAX_STEPS:
                return None
            try:
                step = _decode_step((self.directory / f"{at}.step").read_bytes())
            except (OSError, ValueError, msgspec.MsgspecError):
                return None
            if step.to_serial != at or step.from_serial >= at:
                return None
            chain.append(step)
            at = step.from_serial
        return chain[::-1]

    def _list(self, kind: str) -> list[int]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        found = (_SERIAL.fullmatch(name) for name in names)
        return [int(match[1]) for match in found if match is not None and match[2] == kind]

    # ------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let nobody else make a roster here. Raises StorageBusy, StorageError."""
        with storage_errors(self.directory):
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(
                self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StorageBusy(f"{self.directory}: a roster is being made already") from error
            for leftover in self.directory.glob(".new-*"):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)

    def load_state(self, *, fresh_salt: bool) -> ShelfState:
        """What is remembered, or a beginning. fresh_salt: forget all but the serial.

        Raises StorageBroken when it cannot be read: made anew it would betray decoys.
        """
        path = self.directory / "state.json"
        try:
            state = msgspec.json.decode(path.read_bytes(), type=ShelfState)
        except FileNotFoundError:
            state = ShelfState(salt=b"", decoy_secret=b"")
        except (OSError, msgspec.MsgspecError) as error:
            raise StorageBroken(
                f"{path}: {error}; remove it to begin with fresh salt and decoys"
            ) from error
        if fresh_salt or not state.salt:
            state.salt = os.urandom(SALT_BYTES)
            state.decoy_secret = os.urandom(SECRET_BYTES)
            state.decoys = DecoyRange()
        state.highest = max(state.highest, self.find_serial())
        return state

    def write_draft(self, head: bytes, pieces: Iterable[bytes | bytearray]) -> Path:
        """Write a roster beside its place, durably. Raises StorageError."""
        return self._write([head, *pieces])

    def publish(self, draft: Path, serial: int, state: ShelfState, step: Step | None) -> None:
        """Put a draft in force. step: from the one before; None: there is no way from there.

        Raises StorageError; then nothing has changed, but that a serial may be skipped.
        """
        with storage_errors(self.directory):
            state.highest = serial
            os.replace(self._write([msgspec.json.encode(state)]), self.directory / "state.json")
            if step is not None:
                os.replace(self._write(_encode_step(step)), self.directory / f"{serial}.step")
            os.replace(draft, self.path_of(serial))
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._prune(keep_steps=step is not None)

    def _write(self, pieces: Iterable[bytes | bytearray]) -> Path:
        with storage_errors(self.directory):
            descriptor, name = tempfile.mkstemp(prefix=".new-", dir=self.directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            return Path(name)

    def _prune(self, *, keep_steps: bool) -> None:
        """Remove rosters and steps that nobody needs; steps cost less than the roster together."""
        with contextlib.suppress(OSError):
            serials = sorted(self._list("roster"), reverse=True)
            for serial in serials[_KEPT_ROSTERS:]:
                self.path_of(serial).unlink(missing_ok=True)
            room = self.path_of(serials[0]).stat().st_size if keep_steps else 0
            for number, serial in enumerate(sorted(self._list("step"), reverse=True)):
                path = self.directory / f"{serial}.step"
                room -= path.stat().st_size
                if room < 0 or number >= MAX_STEPS:
                    path.unlink(missing_ok=True)


def _encode_step(step: Step) -> list[bytes]:
    head = _StepHead(
        from_serial=step.from_serial,
        to_serial=step.to_serial,
        removed_bytes=len(step.removed),
        added_bytes=len(step.added),
        sha256=hashlib.sha256(step.removed + step.added).hexdigest(),
    )
    return [_STEP_MAGIC, msgspec.json.encode(head), b"\n", step.removed, step.added]


def _decode_step(data: bytes) -> Step:
    """Raises ValueError, msgspec.MsgspecError."""
    if not data.startswith(_STEP_MAGIC):
        raise ValueError("not a step")
    line, _, digests = data[len(_STEP_MAGIC) :].partition(b"\n")
    head = msgspec.json.decode(line, type=_StepHead)
    if (
        len(digests) != head.removed_bytes + head.added_bytes
        or hashlib.sha256(digests).hexdigest() != head.sha256
    ):
        raise ValueError("damaged")
    return Step(
        from_serial=head.from_serial,
        to_serial=head.to_serial,
        removed=digests[: head.removed_bytes],
        added=digests[head.removed_bytes :],
    )

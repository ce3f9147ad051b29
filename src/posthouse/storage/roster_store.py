"""The rosters in force on disk. `RosterFiles`: `ports_roster.RosterStore` and `RosterShelf`.

In the directory, for each domain::

    <domain>.state                      what is in force, what is set aside, highest serials
    <domain>.<serial>.<key_id>.roster   the files it names, octet for octet as published
    <domain>.<serial>.<key_id>.buckets  their indexes (storage/roster_buckets)
    <domain>.note                       what the subscriber says of its last attempt
    incoming/                           files on their way in

The state names the files, so replacing it is the swap. It is replaced last, and
what it no longer names is removed afterwards: a crash between two steps leaves a
file too many, which the next `prepare` clears, and never one too few.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from posthouse.domain.roster import Arrival, History, judge_arrival
from posthouse.errors import RosterRefused, StorageBroken, StorageError
from posthouse.ports_recipients import Fingerprint
from posthouse.ports_roster import (
    RosterFacts,
    RosterIntake,
    RosterKeys,
    RosterNote,
    RosterSays,
    RosterState,
    SlowLookUps,
    Taken,
)
from posthouse.storage import roster_intake
from posthouse.storage.roster_body import RosterBody
from posthouse.storage.roster_directory import MappedRoster
from posthouse.storage.whole_files import (
    domain_file_name,
    look_at,
    replace_file,
    storage_errors,
    sync_directory,
)

_STATE, _NOTE, _ROSTER, _BUCKETS = ".state", ".note", ".roster", ".buckets"
_FILE_NAME = re.compile(r"\.[0-9]+\.[0-9a-f]{16}\.(?:roster|buckets)")

# As many swaps may fall into one `open` before it gives up.
_SWAPS_MET = 5


class FileIntake:
    """A file on its way in; a `RosterIntake`. Made with its first octets."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory = directory
        self._prefix = prefix
        self._file: BinaryIO | None = None
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """Where it is; made if it was not. Raises StorageError."""
        if self._path is None:
            with storage_errors(self._directory):
                descriptor, name = tempfile.mkstemp(prefix=self._prefix, dir=self._directory)
                self._path = Path(name)
                self._file = os.fdopen(descriptor, "wb")
        return self._path

    def write(self, data: bytes, /) -> None:
        """Take octets. Raises StorageError."""
        with storage_errors(self.path):
            assert self._file is not None
            self._file.write(data)

    def finish(self) -> None:
        """All is there; it is made durable once it has passed every check. Raises StorageError."""
        with storage_errors(self.path):
            assert self._file is not None
            self._file.close()

    def discard(self) -> None:
        """Remove it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


class RosterFiles:
    """See the module."""

    def __init__(self, directory: Path, *, clock_s: Callable[[], float]) -> None:
        self._directory = directory
        self._clock_s = clock_s
        self._incoming = directory / "incoming"

    def prepare(self) -> None:
        """Make the directories, clear what a crash left. Raises StorageError.

        For the process that changes rosters, before it does.
        """
        with storage_errors(self._directory):
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._incoming.mkdir(mode=0o700, exist_ok=True)
            for leftover in (*self._incoming.iterdir(), *self._directory.glob(".new-*")):
                leftover.unlink(missing_ok=True)
            named = {
                name
                for state in self._directory.glob(f"*{_STATE}")
                for name in self._names_in(state.name.removesuffix(_STATE))
            }
            for path in self._directory.iterdir():
                if path.name not in named and _FILE_NAME.search(path.name):
                    path.unlink(missing_ok=True)

    def _names_in(self, stem: str) -> Iterator[str]:
        state = self._read_state(self._path_of(stem, _STATE))
        for facts in (state.in_force, state.set_aside):
            if facts is not None:
                for suffix in (_ROSTER, _BUCKETS):
                    yield f"{stem}.{facts.known.serial}.{facts.known.key_id}{suffix}"

    # ------------------------------------------------------------------ reading

    def get_state(self, domain: str) -> RosterState:
        """What lies on disk. Raises StorageError."""
        return self._read_state(self._path(domain, _STATE))

    def _read_state(self, path: Path) -> RosterState:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return RosterState()
        except OSError as error:
            raise StorageBroken(f"{path}: {error.strerror or error}") from error
        try:
            return msgspec.json.decode(data, type=RosterState)
        except msgspec.MsgspecError as error:
            raise StorageBroken(f"{path}: damaged: {error}") from error

    def get_version(self, domain: str) -> Fingerprint | None:
        """Changes with every swap."""
        return look_at(self._path(domain, _STATE))

    def get_directory_version(self) -> Fingerprint | None:
        """Changes with every swap of any domain."""
        return look_at(self._directory)

    def find_file(self, domain: str, facts: RosterFacts) -> Path:
        """Where the file with these facts is."""
        return self._file(domain, facts, _ROSTER)

    def read_says(self, domain: str) -> RosterSays | None:
        """What the roster in force says of MX records; None without one. Raises StorageError."""
        facts = self.get_state(domain).in_force
        if facts is None:
            return None
        try:
            body = self.open_body(domain, facts)
        except (OSError, RosterRefused) as error:  # replaced meanwhile, or damaged
            raise StorageBroken(f"{self.find_file(domain, facts)}: {error}") from error
        try:
            return RosterSays(serial=facts.known.serial, mx=body.head.header.mx)
        finally:
            body.close()

    def open_body(self, domain: str, facts: RosterFacts) -> RosterBody:
        """Open what is in force for look-ups. Raises StorageBroken, OSError."""
        body = RosterBody(self._file(domain, facts, _ROSTER), self._file(domain, facts, _BUCKETS))
        if body.head_sha256 != facts.known.head_sha256:
            body.close()
            raise StorageBroken(f"{self._file(domain, facts, _ROSTER)}: another roster")
        return body

    def open(self, keys: RosterKeys, slow: SlowLookUps) -> MappedRoster | None:
        """The roster in force; None when there is none, it is damaged or its key is missing."""
        for _ in range(_SWAPS_MET):
            try:
                facts = self.get_state(keys.domain).in_force
            except StorageError:
                return None
            if facts is None:
                return None
            try:
                body = self.open_body(keys.domain, facts)
            except FileNotFoundError:  # replaced between the two: look again
                continue
            except (OSError, StorageError):
                return None
            try:
                key = roster_intake.find_roster_key(body.head.header, keys)
                return MappedRoster(body, key, slow, clock_s=self._clock_s)
            except (RosterRefused, ValueError):
                body.close()
                return None
        return None

    # ------------------------------------------------------------------ changing

    def begin(self, domain: str) -> FileIntake:
        """A file for a download or copy."""
        return FileIntake(self._incoming, f"{domain_file_name(domain)}.")

    def take_in(
        self, intake: RosterIntake, keys: RosterKeys, *, now_us: int, max_loss_percent: int
    ) -> Taken:
        """Check, judge, put in force or set aside. Raises RosterRefused, StorageError.

        intake: one of ours, from `begin`.
        """
        assert isinstance(intake, FileIntake)
        try:
            intake.finish()
            if not roster_intake.is_delta(intake.path):
                return self._take_whole(intake.path, keys, now_us, max_loss_percent)
            with self._expanded(intake.path, keys, now_us) as whole:
                return self._take_whole(whole, keys, now_us, max_loss_percent)
        finally:
            intake.discard()

    @contextlib.contextmanager
    def _expanded(self, delta: Path, keys: RosterKeys, now_us: int) -> Iterator[Path]:
        """The whole file that a delta stands for; every refusal says "delta"."""
        state = self.get_state(keys.domain)
        if state.in_force is None:
            raise RosterRefused("delta", "nothing is in force that it could change")
        whole = self.begin(keys.domain)
        try:
            with storage_errors(delta):
                old = self.open_body(keys.domain, state.in_force)
            try:
                roster_intake.expand_delta(delta, whole.path, old, keys, now_s=now_us // 1_000_000)
            finally:
                old.close()
            whole.finish()
            yield whole.path
        except RosterRefused as error:
            raise RosterRefused("delta", error.detail) from error
        finally:
            whole.discard()

    def _take_whole(
        self, path: Path, keys: RosterKeys, now_us: int, max_loss_percent: int
    ) -> Taken:
        state = self.get_state(keys.domain)
        history = _make_history(state)
        checked = roster_intake.check_whole(path, keys, history, now_s=now_us // 1_000_000)
        arrival, why = judge_arrival(checked.known, history, max_loss_percent=max_loss_percent)
        facts = checked.describe(now_us, why)
        if arrival is Arrival.NOT_MODIFIED:
            return Taken(arrival=arrival, facts=facts)
        checked.buckets.write(self._file(keys.domain, facts, _BUCKETS), checked.known.head_sha256)
        target = self._file(keys.domain, facts, _ROSTER)
        with storage_errors(target):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.chmod(path, 0o640)
            os.replace(path, target)
            sync_directory(self._directory)
        highest = {**state.highest, facts.known.key_id: facts.known}
        if arrival is Arrival.SET_ASIDE:
            fresh = RosterState(in_force=state.in_force, set_aside=facts, highest=highest)
        else:
            fresh = RosterState(in_force=facts, highest=highest)
        self._put_state(keys.domain, fresh)
        return Taken(arrival=arrival, facts=facts, why=why)

    def accept(self, keys: RosterKeys, serial: int, *, now_us: int) -> RosterFacts:
        """Put what was set aside in force. Raises KeyError, RosterRefused, StorageError."""
        state = self.get_state(keys.domain)
        aside = state.set_aside
        if aside is None or aside.known.serial != serial:
            raise KeyError(serial)
        path = self._file(keys.domain, aside, _ROSTER)
        roster_intake.check_whole(path, keys, None, now_s=now_us // 1_000_000)
        facts = msgspec.structs.replace(aside, taken_us=now_us, why="")
        self._put_state(keys.domain, RosterState(in_force=facts, highest=state.highest))
        return facts

    def forget_serials(self, domain: str) -> None:
        """Let a lower serial pass. Raises StorageError."""
        state = self.get_state(domain)
        self._put_state(domain, RosterState(in_force=state.in_force))

    def verify(self, keys: RosterKeys) -> RosterState:
        """Take what is damaged out of force. Raises StorageError."""
        state = self.get_state(keys.domain)
        changes: dict[str, None] = {}
        for name in ("in_force", "set_aside"):
            facts: RosterFacts | None = getattr(state, name)
            if facts is not None and not self._is_whole(keys, facts):
                changes[name] = None
        if changes:
            state = msgspec.structs.replace(state, **changes)
            self._put_state(keys.domain, state)
        return state

    def _is_whole(self, keys: RosterKeys, facts: RosterFacts) -> bool:
        try:
            path = self._file(keys.domain, facts, _ROSTER)
            checked = roster_intake.check_whole(path, keys, None, now_s=None)
            if checked.known != facts.known:
                return False
            index = self._file(keys.domain, facts, _BUCKETS)
            if not checked.buckets.agrees_with(index, facts.known.head_sha256):
                checked.buckets.write(index, facts.known.head_sha256)
        except (RosterRefused, StorageBroken):
            return False
        return True

    def keep_only(self, domains: Collection[str]) -> None:
        """Remove the rosters of every other domain. Raises StorageError."""
        stems = set(map(domain_file_name, domains))
        with storage_errors(self._directory):
            for state in self._directory.glob(f"*{_STATE}"):
                stem = state.name.removesuffix(_STATE)
                if stem not in stems:
                    state.unlink(missing_ok=True)
                    self._path_of(stem, _NOTE).unlink(missing_ok=True)
                    self._remove_files(stem, ())

    def leave_note(self, domain: str, note: RosterNote) -> None:
        """Leave word for `status`; it is no loss when a full disk forgets it."""
        with contextlib.suppress(OSError):
            self._path(domain, _NOTE).write_bytes(msgspec.json.encode(note))

    def read_note(self, domain: str) -> RosterNote:
        """What `leave_note` left last."""
        try:
            return msgspec.json.decode(self._path(domain, _NOTE).read_bytes(), type=RosterNote)
        except (OSError, msgspec.MsgspecError):
            return RosterNote()

    # ------------------------------------------------------------------ files

    def _put_state(self, domain: str, state: RosterState) -> None:
        replace_file(self._path(domain, _STATE), [msgspec.json.encode(state)])
        kept = [
            self._file(domain, facts, suffix)
            for facts in (state.in_force, state.set_aside)
            if facts is not None
            for suffix in (_ROSTER, _BUCKETS)
        ]
        with storage_errors(self._directory):
            self._remove_files(domain_file_name(domain), kept)

    def _remove_files(self, stem: str, kept: Collection[Path]) -> None:
        ours = re.compile(re.escape(stem) + _FILE_NAME.pattern)
        for path in self._directory.iterdir():
            if path not in kept and ours.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _file(self, domain: str, facts: RosterFacts, suffix: str) -> Path:
        known = facts.known
        return self._path(domain, f".{known.serial}.{known.key_id}{suffix}")

    def _path(self, domain: str, suffix: str) -> Path:
        return self._path_of(domain_file_name(domain), suffix)

    def _path_of(self, stem: str, suffix: str) -> Path:
        return self._directory / f"{stem}{suffix}"


def _make_history(state: RosterState) -> History:
    return History(
        in_force=state.in_force.known if state.in_force else None,
        set_aside=state.set_aside.known if state.set_aside else None,
        highest=state.highest,
    )

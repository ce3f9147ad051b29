"""Makes rosters from sources of addresses. `RosterMaker`: `ports_publish.RosterWorks`.

The order of a build: lock, read all sources to their end, hash and sort, add
postmaster and decoys, compare with what is in force, write beside it, read it back
by the code of a backup, put it in force. Whatever fails on the way leaves things
as they were. Spec: docs/protocol.md "The roster".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from posthouse import observe
from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.roster import POSTMASTER, canonical_text, check_form
from posthouse.domain.roster_build import (
    Step,
    date_header,
    find_loss,
    is_reissue_due,
    make_decoys,
    next_serial,
    padded_count,
    plan_decoys,
    says_the_same,
)
from posthouse.errors import PublishRefused, RosterRefused, SourceFailed, StorageBroken
from posthouse.mail.roster import (
    MAX_COUNT,
    MAX_RULES,
    DigestScheme,
    HeaderFold,
    HmacDigest,
    RosterBody,
    RosterHeader,
    RosterPublisher,
    ScryptDigest,
)
from posthouse.mail.wire_text import encode_base64url
from posthouse.ports_publish import BuildReport, RosterOrder
from posthouse.ports_roster import RosterKeys
from posthouse.proto import signing
from posthouse.proto.roster_delta import find_changes
from posthouse.proto.roster_file import encode_signed
from posthouse.storage.digest_cache import MAC_BYTES, DigestCache
from posthouse.storage.digest_sorter import HashJob, SortedBody, count_cores, hash_and_sort
from posthouse.storage.roster_body import RosterBody as RosterFile
from posthouse.storage.roster_intake import check_whole
from posthouse.storage.roster_shelf import RosterShelf, ShelfState, open_shelf
from posthouse.storage.source_reading import SourceReading

_TELL_EVERY_SECONDS: Final = 30.0


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """Who publishes, and the Ed25519 key that signs (32 octets)."""

    party: str
    private_key: bytes

    @property
    def public_key(self) -> bytes:
        """What backups know of it."""
        return signing.derive_public_key(self.private_key)

    def __repr__(self) -> str:
        return f"Signer({self.party})"


class RosterMaker:
    """The rosters of all domains, `<domain>/<key_id>/` below one directory."""

    def __init__(
        self,
        directory: Path,
        signer: Signer,
        *,
        now_s: Callable[[], int],
        cores: int | None = None,
    ) -> None:
        """now_s: seconds since 1970. cores: None means all this process may use."""
        self._directory = directory
        self._signer = signer
        self._now_s = now_s
        self._cores = cores or count_cores()

    def make(
        self, order: RosterOrder, *, accept_loss: bool = False, new_salt: bool = False
    ) -> Sequence[BuildReport]:
        """Publish what has changed, for every key of the order. See `RosterWorks.make`."""
        if not order.keys:
            return ()
        with contextlib.ExitStack() as stack:
            shelves = [
                open_shelf(self._directory, order.domain, roster_key_id(key)) for key in order.keys
            ]
            for shelf in shelves:
                stack.enter_context(shelf.lock())
            states = [shelf.load_state(fresh_salt=new_salt) for shelf in shelves]
            schemes = [
                _make_scheme(order, key, state)
                for key, state in zip(order.keys, states, strict=True)
            ]
            reading = SourceReading(order)
            bodies = self._hash(order, schemes, reading, shelves)
            return [
                self._publish(order, key, shelf, state, scheme, body, reading, accept_loss)
                for key, shelf, state, scheme, body in zip(
                    order.keys, shelves, states, schemes, bodies, strict=True
                )
            ]

    def _hash(
        self,
        order: RosterOrder,
        schemes: Sequence[DigestScheme],
        reading: SourceReading,
        shelves: Sequence[RosterShelf],
    ) -> list[SortedBody]:
        """The sorted digests of everybody whom the sources name, for each key."""
        # The macs of slow digests are fast digests of full length.
        fast = tuple(
            (HmacDigest(length=MAC_BYTES, key_id=scheme.key_id), key)
            if isinstance(scheme, ScryptDigest)
            else (scheme, key)
            for scheme, key in zip(schemes, order.keys, strict=True)
        )
        job = HashJob(order.how, order.domain, fast)
        bodies, given, empty = hash_and_sort(job, reading.contents(), cores=self._cores)
        reading.given, reading.empty = given, empty
        return [
            self._stretch(order.domain, scheme, body, shelf)
            if isinstance(scheme, ScryptDigest)
            else body
            for scheme, body, shelf in zip(schemes, bodies, shelves, strict=True)
        ]

    def _stretch(
        self, domain: str, scheme: ScryptDigest, macs: SortedBody, shelf: RosterShelf
    ) -> SortedBody:
        wanted = set(macs.digests())
        body = SortedBody(scheme.length)
        with DigestCache(shelf.directory / "digests.cache", scheme) as cache:
            body.add(cache.stretch(wanted, threads=self._cores, tell=_Teller(domain)))
            cache.keep_only(wanted)
        return body

    def _publish(
        self,
        order: RosterOrder,
        key: bytes,
        shelf: RosterShelf,
        state: ShelfState,
        scheme: DigestScheme,
        body: SortedBody,
        reading: SourceReading,
        accept_loss: bool,
    ) -> BuildReport:
        digest = make_digest(scheme, key)
        text = canonical_text(POSTMASTER, order.how, cut=False, domain=order.domain)
        body.add([digest(text)])
        real = body.count
        wanted = padded_count(real, percent=order.decoy_percent, multiple=order.decoy_multiple)
        if wanted > MAX_COUNT:
            raise SourceFailed(f"{order.domain}: {wanted:,} entries, more than {MAX_COUNT:,}")
        state.decoys = plan_decoys(real, wanted, state.decoys)
        body.add(make_decoys(state.decoy_secret, state.decoys, scheme.length))
        now_s = self._now_s()
        header = self._make_header(order, scheme, body, reading, now_s, state)
        old = shelf.find_serial()
        before = _read_header(shelf, old) if old else None
        report = BuildReport(
            domain=order.domain,
            key_id=scheme.key_id,
            serial=old,
            published=False,
            path=str(shelf.path_of(old)),
            count=body.count,
            decoys=len(state.decoys),
            given=reading.given,
            skipped=reading.skipped,
            unreadable=reading.unreadable,
            catch_all=header.catch_all,
            rules=len(header.rules),
            warnings=tuple(_find_warnings(header, before, reading)),
        )
        if before is not None:
            if says_the_same(header, before) and not is_reissue_due(
                before, now_s=now_s, valid_seconds=order.valid_seconds
            ):
                return report
            loss = find_loss(header, before, max_loss_percent=order.max_loss)
            if loss and not accept_loss:
                raise PublishRefused(
                    f"{order.domain}: {loss}; posthouse roster build --accept-loss"
                )
        return self._put_in_force(order.domain, key, shelf, state, header, body, before, report)

    def _make_header(
        self,
        order: RosterOrder,
        scheme: DigestScheme,
        body: SortedBody,
        reading: SourceReading,
        now_s: int,
        state: ShelfState,
    ) -> RosterHeader:
        rules = (*order.rules, *reading.rules)
        if len(rules) > MAX_RULES:
            raise SourceFailed(f"{order.domain}: {len(rules)} rules, more than {MAX_RULES}")
        header = RosterHeader(
            domain=order.domain,
            serial=1,
            issued_at="",
            expires_at="",
            refresh_seconds=order.refresh_seconds,
            digest=scheme,
            fold=HeaderFold(
                case=order.how.case, delimiters=order.how.delimiters, dots=order.how.dots
            ),
            catch_all=order.catch_all or reading.catch_all,
            rules=rules,
            limits=order.limits,
            policy=order.policy,
            mx=order.mx,
            body=RosterBody(count=0, sha256=""),
            publisher=RosterPublisher(
                party=self._signer.party, key_id=signing.key_id(self._signer.public_key)
            ),
        )
        header = date_header(
            header,
            serial=next_serial(state.highest, now_s),
            now_s=now_s,
            valid_seconds=order.valid_seconds,
            body=RosterBody(count=body.count, sha256=body.sha256()),
        )
        check_form(header)
        return header

    def _put_in_force(
        self,
        domain: str,
        key: bytes,
        shelf: RosterShelf,
        state: ShelfState,
        header: RosterHeader,
        body: SortedBody,
        before: RosterHeader | None,
        report: BuildReport,
    ) -> BuildReport:
        private_key = self._signer.private_key
        head = encode_signed(header, lambda octets: signing.sign(private_key, octets))
        draft = shelf.write_draft(head, body.pieces)
        try:
            self._read_back(draft, domain, key, self._now_s())
            step = _make_step(shelf, draft, header, before)
            shelf.publish(draft, header.serial, state, step)
        finally:
            draft.unlink(missing_ok=True)
        width = header.digest.length
        return msgspec.structs.replace(
            report,
            serial=header.serial,
            published=True,
            path=str(shelf.path_of(header.serial)),
            removed=len(step.removed) // width if step is not None else -1,
            added=len(step.added) // width if step is not None else -1,
        )

    def _read_back(self, draft: Path, domain: str, key: bytes, now_s: int) -> None:
        """Have a backup's own code look at what no backup has seen yet."""
        keys = RosterKeys(
            domain=domain,
            party=self._signer.party,
            public_keys=(self._signer.public_key,),
            roster_keys=(key,),
        )
        try:
            check_whole(draft, keys, None, now_s=now_s)
        except RosterRefused as error:
            raise StorageBroken(
                f"{domain}: the roster just made is refused: {error.detail}"
            ) from error


def _make_scheme(order: RosterOrder, key: bytes, state: ShelfState) -> DigestScheme:
    wanted = order.digest
    key_id = roster_key_id(key)
    if wanted.scheme == "hmac-sha256":
        return HmacDigest(length=wanted.length, key_id=key_id)
    return ScryptDigest(
        n=wanted.n,
        r=8,
        p=wanted.p,
        salt=encode_base64url(state.salt),
        length=wanted.length,
        key_id=key_id,
    )


def _read_header(shelf: RosterShelf, serial: int) -> RosterHeader | None:
    """Of the roster in force; None when it is damaged: then a new one takes its place."""
    try:
        body = shelf.open_body(serial)
    except (OSError, StorageBroken, RosterRefused) as error:
        observe.trouble("publish", f"{shelf.path_of(serial)} cannot be read", error)
        return None
    header = body.head.header
    body.close()
    return header


def _make_step(
    shelf: RosterShelf, draft: Path, header: RosterHeader, before: RosterHeader | None
) -> Step | None:
    """What changes with the draft; None when digests of the two cannot be compared."""
    if before is None or before.digest != header.digest:
        return None
    old = shelf.open_body(before.serial)
    try:
        new = RosterFile(draft, None)
        try:
            removed, added = find_changes(old.digests, new.digests, header.digest.length)
        finally:
            new.close()
    finally:
        old.close()
    return Step(from_serial=before.serial, to_serial=header.serial, removed=removed, added=added)


def _find_warnings(
    header: RosterHeader, before: RosterHeader | None, reading: SourceReading
) -> Iterator[str]:
    if reading.unreadable:
        shown = ", ".join(reading.examples)
        yield f"{reading.unreadable} entries are no addresses and left out: {shown}"
    if reading.empty:
        yield f"of {reading.empty} local parts nothing is left without dots: left out"
    if before is not None and before.catch_all and not header.catch_all:
        yield "catch_all turns false: backups set this roster aside until their operator accepts it"
    if before is None and header.body.count <= 1 and not header.catch_all:
        yield "it names nobody but postmaster: backups set a first roster like this aside"


class _Teller:
    """Says how far slow digests have come, now and then."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._next = time.monotonic() + _TELL_EVERY_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next += _TELL_EVERY_SECONDS
            observe.note("publish", f"{self._domain}: {done:,} of {total:,} slow digests")

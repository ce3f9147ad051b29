"""Makes rosters from sources of addresses. `RosterMaker`: `ports_publish.RosterWorks`.

The order of a build: lock, read all sources to their end, hash and sort, add
postmaster and decoys, compare with what is in force, write beside it, read it back
by the code of a backup, put it in force. Whatever fails on the way leaves things
as they were. Spec: docs/protocol.md "The roster".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.roster import POSTMASTER, canonical_text
from posthouse.domain.roster_build import (
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
    DigestScheme,
    HmacDigest,
    RosterHeader,
    RosterPublisher,
    ScryptDigest,
)
from posthouse.ports_publish import BuildReport, RosterOrder, never
from posthouse.ports_roster import RosterKeys
from posthouse.proto import signing
from posthouse.proto.roster_file import encode_signed
from posthouse.storage.digest_cache import MAC_BYTES, DigestCache
from posthouse.storage.digest_sorter import HashJob, SortedBody, count_cores, hash_and_sort
from posthouse.storage.roster_intake import check_whole
from posthouse.storage.roster_parts import (
    Teller,
    find_warnings,
    make_header,
    make_scheme,
    make_step,
    read_header,
)
from posthouse.storage.roster_shelf import RosterShelf, ShelfState, open_shelf
from posthouse.storage.source_reading import SourceReading


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
        self._publisher = RosterPublisher(
            party=signer.party, key_id=signing.key_id(signer.public_key)
        )
        self._now_s = now_s
        self._cores = cores or count_cores()

    def make(
        self,
        order: RosterOrder,
        *,
        accept_loss: bool = False,
        new_salt: bool = False,
        stopped: Callable[[], bool] = never,
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
                make_scheme(order, key, state)
                for key, state in zip(order.keys, states, strict=True)
            ]
            reading = SourceReading(order, stopped)
            bodies = self._hash(order, schemes, reading, shelves, stopped)
            reports: list[BuildReport] = []
            refused: PublishRefused | None = None
            for key, shelf, state, scheme, body in zip(
                order.keys, shelves, states, schemes, bodies, strict=True
            ):
                try:
                    reports.append(
                        self._publish(order, key, shelf, state, scheme, body, reading, accept_loss)
                    )
                except PublishRefused as error:  # a new backup gets its first roster all the same
                    refused = error
            if refused is not None:
                raise refused
            return reports

    def _hash(
        self,
        order: RosterOrder,
        schemes: Sequence[DigestScheme],
        reading: SourceReading,
        shelves: Sequence[RosterShelf],
        stopped: Callable[[], bool],
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
            self._stretch(scheme, body, shelf, Teller(order.domain, stopped))
            if isinstance(scheme, ScryptDigest)
            else body
            for scheme, body, shelf in zip(schemes, bodies, shelves, strict=True)
        ]

    def _stretch(
        self, scheme: ScryptDigest, macs: SortedBody, shelf: RosterShelf, teller: Teller
    ) -> SortedBody:
        wanted = set(macs.digests())
        body = SortedBody(scheme.length)
        with DigestCache(shelf.directory / "digests.cache", scheme) as cache:
            body.add(cache.stretch(wanted, threads=self._cores, tell=teller))
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
        header = make_header(
            order,
            scheme,
            body,
            reading,
            publisher=self._publisher,
            serial=next_serial(state.highest, now_s),
            now_s=now_s,
        )
        old = shelf.find_serial()
        before = read_header(shelf, old) if old else None
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
            warnings=tuple(find_warnings(header, before, reading)),
        )
        if before is not None:
            if says_the_same(header, before) and not is_reissue_due(
                before, now_s=now_s, valid_seconds=order.valid_seconds
            ):
                return report
            loss = find_loss(header, before, max_loss_percent=order.max_loss)
            if loss and not accept_loss:
                raise PublishRefused(f"{order.domain}: {loss}")
        return self._put_in_force(order.domain, key, shelf, state, header, body, before, report)

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
            step = make_step(shelf, draft, header, before)
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

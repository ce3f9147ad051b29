"""The parts of a roster in the making: scheme, header, what changed, what to tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from posthouse import observe
from posthouse.domain.digests import roster_key_id
from posthouse.domain.roster import check_form
from posthouse.domain.roster_build import Step, date_header
from posthouse.errors import RosterRefused, SourceFailed, StorageBroken, StorageBusy
from posthouse.mail.roster import (
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
from posthouse.ports_publish import RosterOrder
from posthouse.proto.roster_delta import find_changes
from posthouse.storage.digest_sorter import SortedBody
from posthouse.storage.roster_body import RosterBody as RosterFile
from posthouse.storage.roster_shelf import RosterShelf, ShelfState
from posthouse.storage.source_reading import SourceReading

_TELL_EVERY_SECONDS: Final = 30.0


def make_scheme(order: RosterOrder, key: bytes, state: ShelfState) -> DigestScheme:
    """How the digests of one key are made."""
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


def make_header(
    order: RosterOrder,
    scheme: DigestScheme,
    body: SortedBody,
    reading: SourceReading,
    *,
    publisher: RosterPublisher,
    serial: int,
    now_s: int,
) -> RosterHeader:
    """The header of a roster that is issued now. Raises SourceFailed, RosterRefused."""
    rules = (*order.rules, *reading.rules)
    if len(rules) > MAX_RULES:
        raise SourceFailed(f"{order.domain}: {len(rules)} rules, more than {MAX_RULES}")
    header = RosterHeader(
        domain=order.domain,
        serial=serial,
        issued_at="",
        expires_at="",
        refresh_seconds=order.refresh_seconds,
        digest=scheme,
        fold=HeaderFold(case=order.how.case, delimiters=order.how.delimiters, dots=order.how.dots),
        catch_all=order.catch_all or reading.catch_all,
        rules=rules,
        limits=order.limits,
        policy=order.policy,
        mx=order.mx,
        body=RosterBody(count=0, sha256=""),
        publisher=publisher,
    )
    header = date_header(
        header,
        serial=serial,
        now_s=now_s,
        valid_seconds=order.valid_seconds,
        body=RosterBody(count=body.count, sha256=body.sha256()),
    )
    check_form(header)
    return header


def read_header(shelf: RosterShelf, serial: int) -> RosterHeader | None:
    """Of the roster in force; None when it is damaged: then a new one takes its place."""
    try:
        body = shelf.open_body(serial)
    except (OSError, StorageBroken, RosterRefused) as error:
        observe.trouble("publish", f"{shelf.path_of(serial)} cannot be read", error)
        return None
    header = body.head.header
    body.close()
    return header


def make_step(
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


def find_warnings(
    header: RosterHeader, before: RosterHeader | None, reading: SourceReading
) -> Iterator[str]:
    """What the operator should know of a roster that can be published all the same."""
    if reading.unreadable:
        shown = ", ".join(reading.examples)
        yield f"{reading.unreadable} entries are no addresses and left out: {shown}"
    if reading.empty:
        yield f"of {reading.empty} local parts nothing is left without dots: left out"
    if before is not None and before.catch_all and not header.catch_all:
        yield "catch_all turns false: backups set this roster aside until their operator accepts it"
    if before is None and header.body.count <= 1 and not header.catch_all:
        yield "it names nobody but postmaster: backups set a first roster like this aside"


class Teller:
    """Says how far slow digests have come, now and then, and whether to go on."""

    def __init__(self, domain: str, stopped: Callable[[], bool]) -> None:
        self._domain = domain
        self._stopped = stopped
        self._next = time.monotonic() + _TELL_EVERY_SECONDS

    def __call__(self, done: int, total: int) -> None:
        """Raises StorageBusy when stopped."""
        if self._stopped():
            raise StorageBusy(f"{self._domain}: the build was stopped")
        if time.monotonic() >= self._next:
            self._next += _TELL_EVERY_SECONDS
            observe.note("publish", f"{self._domain}: {done:,} of {total:,} slow digests")

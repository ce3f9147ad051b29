"""Decisions of whoever makes a roster: serials, decoys, what counts as a change, loss.

Decoys are entries that are nobody. They are numbered, and the roster holds those
of one range: where one more person takes the place of a decoy, the oldest goes; where
room is left, a new one comes. So each appears once and disappears once, as people
do, and none of them ever returns. They stay while the padded count stays.
Spec: docs/protocol.md "The roster".
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final

import msgspec

from posthouse.domain.roster import MAX_LIFETIME_SECONDS
from posthouse.mail.roster import MAX_COUNT, RosterBody, RosterHeader
from posthouse.mail.wire_text import format_time, parse_time

SECRET_BYTES: Final = 32
_DAY_SECONDS: Final = 86_400


class DecoyRange(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the decoys that stand in a roster: first..end - 1."""

    first: int = 0
    end: int = 0

    def __len__(self) -> int:
        return self.end - self.first


def padded_count(real: int, *, percent: int, multiple: int) -> int:
    """How many entries a roster of `real` ones has: percent more, then up to a multiple.

    Never more than a roster may have, and never fewer than `real`.
    """
    wanted = real + -(-real * percent // 100)
    wanted = -(-wanted // multiple) * multiple
    return max(real, min(wanted, MAX_COUNT))


def plan_decoys(real: int, wanted: int, before: DecoyRange) -> DecoyRange:
    """Which decoys fill `real` entries up to `wanted`, as few of them new as can be."""
    count = wanted - real
    if count <= len(before):
        return DecoyRange(first=before.end - count, end=before.end)
    return DecoyRange(first=before.first, end=before.first + count)


def make_decoys(secret: bytes, numbers: DecoyRange, width: int) -> Iterable[bytes]:
    """The digests of decoys: nobody without the secret can tell them from others."""
    for number in range(numbers.first, numbers.end):
        yield hmac.digest(secret, number.to_bytes(8, "big"), "sha256")[:width]


def next_serial(highest: int, now_s: int) -> int:
    """The serial of a new roster: strictly above all before, and the time where it can be."""
    return max(highest + 1, now_s)


def date_header(
    header: RosterHeader, *, serial: int, now_s: int, valid_seconds: int, body: RosterBody
) -> RosterHeader:
    """The header of a roster that is issued now."""
    valid = min(valid_seconds, MAX_LIFETIME_SECONDS)
    return msgspec.structs.replace(
        header,
        serial=serial,
        issued_at=format_time(now_s),
        expires_at=format_time(now_s + valid),
        body=body,
    )


def says_the_same(new: RosterHeader, old: RosterHeader) -> bool:
    """Tell whether two rosters differ in nothing but serial and dates."""
    return (
        msgspec.structs.replace(
            new, serial=old.serial, issued_at=old.issued_at, expires_at=old.expires_at
        )
        == old
    )


def is_reissue_due(header: RosterHeader, *, now_s: int, valid_seconds: int) -> bool:
    """Tell whether an unchanged roster needs new dates.

    After a day, or a quarter of its time where that is less: a backup that loses its
    primary at any moment then has a roster that is good for three quarters at least.
    Also when its time is another one than is wanted, or the clock stands before it.
    """
    issued, expires = parse_time(header.issued_at), parse_time(header.expires_at)
    due = issued + min(_DAY_SECONDS, valid_seconds // 4)
    return not issued <= now_s < due or expires - issued != min(valid_seconds, MAX_LIFETIME_SECONDS)


def find_loss(new: RosterHeader, old: RosterHeader, *, max_loss_percent: int) -> str:
    """Why a roster should not follow another without the operator; "" when it may."""
    lost = old.body.count - new.body.count
    if lost * 100 > old.body.count * max_loss_percent and not new.catch_all:
        return (
            f"{lost:,} of {old.body.count:,} entries would go, more than {max_loss_percent} %: "
            "is a source incomplete?"
        )
    return ""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What changed between two rosters that followed each other; digests concatenated."""

    from_serial: int
    to_serial: int
    removed: bytes
    added: bytes


def join_steps(chain: Iterable[Step], width: int) -> tuple[bytes, bytes]:
    """What has to be removed and added for all steps at once, each ascending.

    A digest that came and went again, or the other way round, is no change.
    """
    removed: set[bytes] = set()
    added: set[bytes] = set()
    for step in chain:
        for digest in split_digests(step.removed, width):
            if digest in added:
                added.remove(digest)
            else:
                removed.add(digest)
        for digest in split_digests(step.added, width):
            if digest in removed:
                removed.remove(digest)
            else:
                added.add(digest)
    return b"".join(sorted(removed)), b"".join(sorted(added))


def split_digests(octets: bytes, width: int) -> list[bytes]:
    """Digests one by one."""
    return [octets[start : start + width] for start in range(0, len(octets), width)]

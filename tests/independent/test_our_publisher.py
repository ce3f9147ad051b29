"""What our publisher makes, as somebody reads it who knows nothing but the protocol."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from fakes.source import ListSource
from independent import roster
from posthouse.domain.recipients import Fold
from posthouse.mail.roster import RosterLimits, RosterPolicy, RosterRule
from posthouse.ports_publish import DigestOrder, RosterOrder, RosterReplyKind
from posthouse.proto import signing
from posthouse.storage.roster_maker import RosterMaker, Signer
from posthouse.storage.roster_offers import RosterOffers

KEY = bytes(range(32))
NOW = datetime.datetime(2026, 11, 9, 8, tzinfo=datetime.UTC)
SIGNER = Signer(party="coach.example", private_key=signing.generate_private_key())
PEOPLE = [
    "Marta@coach.example",
    '"marta lee"@coach.example',
    "ZOE\u0308",
    "j.r.hartley-books.old",
    "ops+night@Coach.Example.",
    "+fly.fishing",
    "x@elsewhere.example",
]


def read(file: bytes) -> tuple[dict[str, Any], list[bytes]]:
    return roster.read(
        file,
        domain="coach.example",
        roster_key=KEY,
        public_key=SIGNER.public_key,
        now=NOW + datetime.timedelta(minutes=2),
    )


@pytest.mark.parametrize(
    "digest",
    [
        DigestOrder(),
        DigestOrder(length=32),
        DigestOrder(scheme="scrypt", n=1024, p=2, length=20),
    ],
    ids=lambda order: f"{order.scheme}-{order.length}",
)
@pytest.mark.parametrize(
    "how",
    [Fold(), Fold(dots="drop", delimiters="+-"), Fold(case="preserve", delimiters="")],
    ids=lambda how: f"{how.case}-{how.delimiters}-{how.dots}",
)
def test_rosters_and_deltas_are_read_by_others(
    tmp_path: Path, digest: DigestOrder, how: Fold
) -> None:
    """An independent reader believes our files, finds our people, and applies our deltas."""
    clock = [int(NOW.timestamp())]
    source = ListSource(PEOPLE)
    maker = RosterMaker(tmp_path, SIGNER, now_s=lambda: clock[0], cores=1)
    order = RosterOrder(
        domain="coach.example",
        sources=(source,),
        keys=(KEY,),
        how=how,
        digest=digest,
        rules=(RosterRule(match="sales-.*", action="accept", note="fairs"),),
        decoy_percent=50,
        limits=RosterLimits(max_message_bytes=52_428_800, smtputf8=True, eight_bit_mime=False),
        policy=RosterPolicy(blocking="forbidden", when_stale="hold"),
        mx=((10, "mx1.coach.example"),),
    )
    [first] = maker.make(order)
    before = Path(first.path).read_bytes()
    header, digests = read(before)
    assert header["serial"] == clock[0]
    assert header["limits"] == {
        "max_message_bytes": 52_428_800,
        "smtputf8": True,
        "8bitmime": False,
    }
    assert header["rules"] == [{"match": "sales-.*", "action": "accept", "note": "fairs"}]
    assert header["mx"] == [[10, "mx1.coach.example"]]
    assert len(digests) == 7 + 4
    for address in [*PEOPLE[:-1], "postmaster"]:
        assert roster.find(f"{address.partition('@')[0]}@x", header, digests, KEY) == "digest"
    assert roster.find("nobody@x", header, digests, KEY) == "absent"

    clock[0] += 60
    source.addresses[1] = "hartley"
    [second] = maker.make(order)
    reply = RosterOffers(tmp_path).find(
        "coach.example", first.key_id, since=first.serial, if_none_match=""
    )
    assert reply is not None
    assert reply.kind is RosterReplyKind.DELTA
    after = Path(second.path).read_bytes()
    assert roster.apply_delta(before, reply.body) == after
    read(after)

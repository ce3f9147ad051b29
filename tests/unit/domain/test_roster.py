"""Decisions about rosters: belief, arrival, look-up order."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fakes.rosters import make_header, rule
from fakes.vectors import DOMAIN, NOW_S, PUBLIC_KEY, ROSTER, ROSTER_KEY, VECTORS
from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.finding import Finding
from posthouse.domain.roster import (
    Arrival,
    History,
    KnownRoster,
    RosterReader,
    Trust,
    check_header,
    judge_arrival,
)
from posthouse.errors import RosterRefused
from posthouse.mail.address import unquote_local_part
from posthouse.mail.roster import HeaderFold, RosterPublisher, ScryptDigest
from posthouse.mail.wire_text import format_time
from posthouse.proto import signing
from posthouse.proto.roster_file import parse_head

KEY_ID = roster_key_id(ROSTER_KEY)
PUBLISHER_KEY_ID = signing.key_id(PUBLIC_KEY)
TRUST = Trust(
    domain=DOMAIN, party=DOMAIN, publisher_key_ids=[PUBLISHER_KEY_ID], roster_key_ids=[KEY_ID]
)
DAY = 86_400


def scrypt(n: int) -> ScryptDigest:
    return ScryptDigest(n=n, r=8, p=1, salt="Npn-MgojWduuHKTLKSMbIw", length=16, key_id=KEY_ID)


def times(issued: int, expires: int) -> dict[str, Any]:
    return {"issued_at": format_time(NOW_S + issued), "expires_at": format_time(NOW_S + expires)}


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({}, "plain"),
        (times(300, 400), "five minutes ahead"),
        (times(-90 * DAY + 1, 1), "90 days long, one second left"),
        ({"mx": ((10, "mx1.example.com"), (20, "."))}, "a null MX"),
        ({"digest": scrypt(1 << 14)}, "scrypt"),
    ],
)
def test_sound_headers_are_believed(members: dict[str, Any], why: str) -> None:
    """A header within every limit passes."""
    check_header(make_header(**members), TRUST, now_s=NOW_S)


@pytest.mark.parametrize(
    ("members", "check", "why"),
    [
        ({"domain": "other.example"}, "domain", "another domain"),
        ({"domain": "Coach.Example"}, "header", "upper case"),
        ({"domain": "café.example"}, "header", "U-labels"),
        ({"domain": "coach.example."}, "header", "a final dot"),
        ({"digest": scrypt(1025)}, "header", "n is no power of two"),
        ({"mx": ((10, "MX.example"),)}, "header", "a host in upper case"),
        ({"mx": ((10, ""),)}, "header", "a host without a name"),
        ({"rules": (rule("(", "accept"),)}, "rules", "a broken pattern"),
        (
            {"publisher": RosterPublisher(party="x.example", key_id=PUBLISHER_KEY_ID)},
            "publisher",
            "another party",
        ),
        ({"publisher": RosterPublisher(party=DOMAIN, key_id="0" * 16)}, "publisher", "another key"),
        (
            {"digest": msgspec.structs.replace(scrypt(1024), key_id="0" * 16)},
            "key",
            "another roster key",
        ),
        (times(301, 400), "times", "issued in the future"),
        (times(0, 0), "times", "expires when it is issued"),
        (times(-10, -20), "times", "expires before it is issued"),
        (times(-10, 0), "times", "expired"),
        (times(0, 90 * DAY + 1), "times", "more than 90 days"),
    ],
)
def test_other_headers_are_refused(members: dict[str, Any], check: str, why: str) -> None:
    """Each check refuses what is beyond its limit, by its name."""
    with pytest.raises(RosterRefused) as caught:
        check_header(make_header(**members), TRUST, now_s=NOW_S)
    assert caught.value.check == check, why


def known(serial: int, **members: Any) -> KnownRoster:
    defaults: dict[str, Any] = {
        "serial": serial,
        "key_id": KEY_ID,
        "head_sha256": f"{serial:064x}",
        "count": 100,
        "catch_all": False,
    }
    return KnownRoster(**(defaults | members))


def history(old: KnownRoster, aside: KnownRoster | None = None) -> History:
    return History(in_force=old, set_aside=aside, highest={KEY_ID: aside or old})


@pytest.mark.parametrize(
    ("new", "before", "arrival", "why"),
    [
        (known(5), History(), Arrival.PUT_IN_FORCE, "the first"),
        (known(5, count=1), History(), Arrival.SET_ASIDE, "the first names postmaster alone"),
        (known(5, count=1, catch_all=True), History(), Arrival.PUT_IN_FORCE, "but a catch-all"),
        (known(6), history(known(5)), Arrival.PUT_IN_FORCE, "the next"),
        (known(5), history(known(5)), Arrival.NOT_MODIFIED, "the same again"),
        (known(6, count=80), history(known(5)), Arrival.PUT_IN_FORCE, "20 % are gone"),
        (known(6, count=79), history(known(5)), Arrival.SET_ASIDE, "21 % are gone"),
        (known(6, count=1000), history(known(5)), Arrival.PUT_IN_FORCE, "growth is no loss"),
        (known(6), history(known(5, catch_all=True)), Arrival.SET_ASIDE, "catch_all turns false"),
        (known(6, catch_all=True), history(known(5)), Arrival.PUT_IN_FORCE, "or turns true"),
        (known(6), history(known(5), known(6)), Arrival.NOT_MODIFIED, "set aside already"),
        (known(7), history(known(5), known(6, count=1)), Arrival.PUT_IN_FORCE, "a later one"),
        (known(7, count=1), history(known(5), known(6, count=1)), Arrival.SET_ASIDE, "no better"),
        (known(3, key_id="b" * 16), history(known(5)), Arrival.PUT_IN_FORCE, "another key"),
        (known(5), History(highest={KEY_ID: known(5)}), Arrival.PUT_IN_FORCE, "its file was lost"),
    ],
)
def test_arrivals(new: KnownRoster, before: History, arrival: Arrival, why: str) -> None:
    """Newer rosters are put in force or set aside, judged against the one in force."""
    found, reason = judge_arrival(new, before)
    assert found is arrival, why
    assert bool(reason) == (arrival is Arrival.SET_ASIDE)


@pytest.mark.parametrize(
    ("new", "before", "why"),
    [
        (known(4), history(known(5)), "roll-back"),
        (known(5), history(known(4), known(6)), "lower than what was set aside"),
        (known(5, head_sha256="0" * 64), history(known(5)), "the same serial, another header"),
        (known(6, head_sha256="0" * 64), history(known(5), known(6)), "the same, set aside"),
    ],
)
def test_rolled_back_serials_are_refused(new: KnownRoster, before: History, why: str) -> None:
    """A serial never goes down and never means two files."""
    with pytest.raises(RosterRefused) as caught:
        judge_arrival(new, before)
    assert caught.value.check == "serial", why


def test_the_share_that_may_go_is_a_setting() -> None:
    """100 % lets everything go, 0 % nothing."""
    new, before = known(6, count=99), history(known(5))
    assert judge_arrival(new, before, max_loss_percent=0)[0] is Arrival.SET_ASIDE
    assert judge_arrival(known(6, count=1), before, max_loss_percent=100)[0] is Arrival.PUT_IN_FORCE


def look_up(reader: RosterReader, digests: set[bytes], content: str) -> str:
    early = reader.find_early(content)
    if early is not None:
        return early.value
    digest = make_digest(reader.header.digest, ROSTER_KEY)
    if any(text and digest(text) in digests for text in reader.find_texts(content)):
        return "digest"
    return reader.otherwise.value


def test_lookups_of_the_vectors() -> None:
    """Every address of the example roster gets the finding that it names."""
    head = parse_head(ROSTER)
    body = ROSTER[head.body_offset :]
    digests = {body[at : at + 16] for at in range(0, len(body), 16)}
    reader = RosterReader(head.header)
    names = {"accept": "rule", "reject": "absent"}
    for example in VECTORS["lookups"]:
        content = unquote_local_part(example["address"].rpartition("@")[0])
        expected = names.get(example["finding"], example["finding"])
        assert look_up(reader, digests, content) == expected, example["address"]


def test_postmaster_precedes_every_rule() -> None:
    """Whatever the rules say, postmaster exists, in any case; nothing like it does."""
    reader = RosterReader(make_header(rules=(rule(".*", "reject"),)))
    assert reader.find_early("PostMaster") is Finding.VOUCHED
    assert reader.find_early("postmaster+x") is Finding.ABSENT
    assert reader.find_early("postma\u017fter") is Finding.ABSENT


def test_rules_see_the_case_folded_text_with_dots_and_subaddress() -> None:
    """Rules match after the case step and before anything is cut or dropped."""
    fold = HeaderFold(case="lower", delimiters="+", dots="drop")
    reader = RosterReader(make_header(fold=fold, rules=(rule(r"a\.b\+c", "defer"),)))
    assert reader.find_early("A.B+C") is Finding.DEFER
    assert reader.find_early("ab+c") is None
    exact = HeaderFold(case="preserve", delimiters="", dots="keep")
    reader = RosterReader(make_header(fold=exact, rules=(rule("Zo\xeb", "trap"),)))
    assert reader.find_early("Zoe\u0308") is Finding.TRAP
    assert reader.find_early("zo\xeb") is None


def test_texts_are_given_once_and_never_empty() -> None:
    """The cut text counts only where it differs; what folds to nothing is no text."""
    fold = HeaderFold(case="lower", delimiters="+", dots="drop")
    reader = RosterReader(make_header(fold=fold))
    assert reader.find_texts("A.b+C") == (f"ab+c@{DOMAIN}", f"ab@{DOMAIN}")
    assert reader.find_texts("A.b") == (f"ab@{DOMAIN}", "")
    assert reader.find_texts("...") == ("", "")
    assert reader.find_texts(".+a") == (f"+a@{DOMAIN}", "")


def test_stale_from_expiry_on() -> None:
    """A roster is fresh until the second in which it expires."""
    reader = RosterReader(make_header(**times(0, 100)))
    assert not reader.is_stale(NOW_S + 99)
    assert reader.is_stale(NOW_S + 100)

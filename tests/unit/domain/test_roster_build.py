"""Decisions of whoever makes a roster."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.domain.roster_build import (
    DecoyRange,
    Step,
    find_loss,
    is_reissue_due,
    join_steps,
    make_decoys,
    next_serial,
    padded_count,
    plan_decoys,
    says_the_same,
)
from posthouse.mail.roster import (
    MAX_COUNT,
    HeaderFold,
    HmacDigest,
    RosterBody,
    RosterHeader,
    RosterLimits,
    RosterPolicy,
    RosterPublisher,
)
from posthouse.mail.wire_text import format_time

DAY = 86_400


def header(
    *, issued: int = 0, valid: int = 14 * DAY, count: int = 100, catch_all: bool = False
) -> RosterHeader:
    return RosterHeader(
        domain="example.com",
        serial=issued or 1,
        issued_at=format_time(issued),
        expires_at=format_time(issued + valid),
        refresh_seconds=3600,
        digest=HmacDigest(length=16, key_id="0" * 16),
        fold=HeaderFold(case="lower", delimiters="+", dots="keep"),
        catch_all=catch_all,
        rules=(),
        limits=RosterLimits(max_message_bytes=1, smtputf8=True, eight_bit_mime=True),
        policy=RosterPolicy(blocking="allowed", when_stale="defer"),
        mx=(),
        body=RosterBody(count=count, sha256="0" * 64),
        publisher=RosterPublisher(party="example.com", key_id="0" * 16),
    )


@pytest.mark.parametrize(
    ("real", "percent", "multiple", "wanted"),
    [(51, 0, 1, 51), (51, 10, 1, 57), (51, 10, 100, 100), (100, 0, 100, 100), (101, 0, 100, 200)],
)
def test_padding(real: int, percent: int, multiple: int, wanted: int) -> None:
    """Per cent first, then up to the multiple."""
    assert padded_count(real, percent=percent, multiple=multiple) == wanted


def test_padding_ends_where_rosters_do() -> None:
    """Padding never makes a roster larger than one may be."""
    assert padded_count(MAX_COUNT - 5, percent=50, multiple=1000) == MAX_COUNT


@given(st.lists(st.integers(0, 40), min_size=2, max_size=20))
def test_decoys_fill_and_never_return(counts: list[int]) -> None:
    """However the real count moves, the sum is right and no number comes back."""
    numbers = DecoyRange()
    gone: set[int] = set()
    for count in counts:
        fresh = plan_decoys(100 - count, 100, numbers)
        assert len(fresh) == count
        before, after = set(range(numbers.first, numbers.end)), set(range(fresh.first, fresh.end))
        assert not (after - before) & gone
        assert not (after - before) or not (before - after)
        gone |= before - after
        numbers = fresh


def test_decoys_depend_on_the_secret_alone() -> None:
    """The same number is the same decoy; another secret gives others."""
    some = DecoyRange(first=3, end=6)
    assert list(make_decoys(b"a" * 32, some, 16)) == list(make_decoys(b"a" * 32, some, 16))
    assert not set(make_decoys(b"a" * 32, some, 16)) & set(make_decoys(b"b" * 32, some, 16))
    assert all(len(decoy) == 20 for decoy in make_decoys(b"a" * 32, some, 20))


def test_serials_rise_with_time_or_without() -> None:
    """The time where it is later, else one more than before."""
    assert (next_serial(0, 5), next_serial(5, 5), next_serial(9, 5)) == (5, 6, 10)


def test_dates_are_no_change() -> None:
    """Serial and dates may differ in rosters that say the same; the count may not."""
    assert says_the_same(header(issued=5), header(issued=99, valid=DAY))
    assert not says_the_same(header(), header(count=101))


@pytest.mark.parametrize(
    ("age", "valid", "due"),
    [
        (0, 14 * DAY, False),
        (DAY - 1, 14 * DAY, False),
        (DAY, 14 * DAY, True),
        (DAY // 4, DAY, True),
        (-1, 14 * DAY, True),
    ],
)
def test_new_dates_come_in_time(age: int, valid: int, due: bool) -> None:
    """After a day or a quarter of its time; at once where the clock went back."""
    old = header(issued=100 * DAY, valid=valid)
    assert is_reissue_due(old, now_s=100 * DAY + age, valid_seconds=valid) is due
    assert is_reissue_due(old, now_s=100 * DAY, valid_seconds=valid + 1)


def test_loss_counts_from_the_old_roster() -> None:
    """A fifth may go, more may not; with a catch-all nobody is lost."""
    assert find_loss(header(count=80), header(), max_loss_percent=20) == ""
    assert "21 of 100" in find_loss(header(count=79), header(), max_loss_percent=20)
    assert find_loss(header(count=1), header(), max_loss_percent=100) == ""
    assert find_loss(header(count=1, catch_all=True), header(), max_loss_percent=20) == ""


@given(st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=6))
def test_steps_join_to_the_whole_difference(states: list[set[int]]) -> None:
    """All steps together say what differs between first and last, and nothing else."""

    def join(numbers: set[int]) -> bytes:
        return b"".join(number.to_bytes(2, "big") for number in sorted(numbers))

    chain = [
        Step(
            from_serial=serial,
            to_serial=serial + 1,
            removed=join(before - after),
            added=join(after - before),
        )
        for serial, (before, after) in enumerate(itertools.pairwise(states), start=1)
    ]
    first, last = states[0], states[-1]
    assert join_steps(chain, 2) == (join(first - last), join(last - first))

"""Deltas between two rosters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.vectors import DELTA, DELTA_RESULT, PUBLIC_KEY, ROSTER, VECTORS
from posthouse.errors import RosterRefused
from posthouse.proto.roster_delta import (
    apply_changes,
    check_delta,
    encode_delta,
    find_changes,
    parse_delta_head,
)
from posthouse.proto.roster_file import parse_head, verify_signature

WIDTH = 16
DIGESTS = st.sets(st.binary(min_size=WIDTH, max_size=WIDTH), max_size=30)


def split_delta() -> tuple[bytes, bytes]:
    delta = parse_delta_head(DELTA)
    middle = delta.digests_offset + delta.removed * WIDTH
    return DELTA[delta.digests_offset : middle], DELTA[middle:]


def body_of(data: bytes) -> bytes:
    return data[parse_head(data).body_offset :]


def test_the_delta_of_the_vectors_gives_the_result() -> None:
    """Applied to the roster it is for, the example gives the new file octet for octet."""
    delta = parse_delta_head(DELTA)
    assert delta.from_serial == VECTORS["delta"]["from_serial"]
    assert delta.new.header.serial == VECTORS["delta"]["to_serial"]
    assert delta.file_bytes == len(DELTA)
    check_delta(delta, parse_head(ROSTER))
    assert verify_signature(delta.new, PUBLIC_KEY)
    body = b"".join(apply_changes(body_of(ROSTER), *split_delta(), WIDTH))
    assert delta.new.octets + body == DELTA_RESULT
    assert delta.new == parse_head(DELTA_RESULT)


def test_the_delta_of_the_vectors_is_written_alike() -> None:
    """Finding the changes and writing them gives the example octet for octet."""
    removed, added = find_changes(body_of(ROSTER), body_of(DELTA_RESULT), WIDTH)
    assert (removed, added) == split_delta()
    head = parse_head(DELTA_RESULT).octets
    assert encode_delta(VECTORS["delta"]["from_serial"], head, removed, added) == DELTA


@given(old=DIGESTS, new=DIGESTS)
def test_changes_lead_from_old_to_new(old: set[bytes], new: set[bytes]) -> None:
    """What is found to have changed leads from one body to the other."""
    before, after = b"".join(sorted(old)), b"".join(sorted(new))
    removed, added = find_changes(before, after, WIDTH)
    assert b"".join(apply_changes(before, removed, added, WIDTH)) == after
    assert len(removed) == len(old - new) * WIDTH


def test_changes_are_found_across_blocks() -> None:
    """Insertions and removals anywhere in a large body are found, and no others."""
    numbers = [number.to_bytes(WIDTH, "big") for number in range(0, 20_000, 2)]
    for gone, fresh in (
        (set(numbers[:3]), set()),
        (set(numbers[-3:]), {(40_001).to_bytes(WIDTH, "big")}),
        (set(numbers[1000:5000]), {(2047).to_bytes(WIDTH, "big"), (1).to_bytes(WIDTH, "big")}),
        (set(numbers), set()),
        (set(), {number.to_bytes(WIDTH, "big") for number in range(2045, 2055, 2)}),
    ):
        before = b"".join(numbers)
        after = b"".join(sorted((set(numbers) - gone) | fresh))
        removed, added = find_changes(before, after, WIDTH)
        assert removed == b"".join(sorted(gone))
        assert added == b"".join(sorted(fresh))
        assert b"".join(apply_changes(before, removed, added, WIDTH)) == after


@pytest.mark.parametrize("width", [16, 17, 32])
def test_wrong_changes_are_refused(width: int) -> None:
    """Removing what is not there, adding what is, disorder, repeats, contradiction: refused."""
    one, two, three, four = (bytes([n]) * width for n in (1, 2, 3, 4))
    body = one + two + three
    for removed, added in (
        (four, b""),
        (b"", two),
        (two + one, b""),
        (one + one, b""),
        (b"", four + four),
        (two, two),
        (two[:-1], b""),
        (b"", four[:-1]),
    ):
        with pytest.raises(RosterRefused) as caught:
            b"".join(apply_changes(body, removed, added, width))
        assert caught.value.check == "delta"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (ROSTER, "a whole file"),
        (DELTA[:20], "cut within the first line"),
        (DELTA[:40], "cut within the second"),
        (DELTA[:300], "cut within the header"),
        (DELTA.replace(b'"removed":1', b'"removed":-1'), "a negative count"),
        (DELTA.replace(b'"removed":1', b'"removed":1000000000'), "a billion"),
        (DELTA.replace(b'"removed":1', b'"removed":1,"removed":1'), "a member twice"),
        (DELTA.replace(b'"added":1}', b'"added":1}\r'), "CR LF"),
        (DELTA.replace(b'"from_serial"', b" " * 2000 + b'"from_serial"'), "a long second line"),
    ],
)
def test_malformed_deltas_are_refused(data: bytes, why: str) -> None:
    """What is no delta is refused from its head alone."""
    with pytest.raises(RosterRefused):
        parse_delta_head(data)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"from_serial":1793606400', b'"from_serial":1793606401', "another serial"),
        (b'"removed":1', b'"removed":2', "counts that do not add up"),
        (b'"bytes":16', b'"bytes":17', "another length"),
        (b"a6b3b1bc87ea53ca", b"a6b3b1bc87ea53cb", "another key"),
    ],
)
def test_deltas_for_another_roster_are_refused(old: bytes, new: bytes, why: str) -> None:
    """A delta that does not start from the roster in force is not applied."""
    with pytest.raises(RosterRefused) as caught:
        check_delta(parse_delta_head(DELTA.replace(old, new, 1)), parse_head(ROSTER))
    assert caught.value.check == "delta", why

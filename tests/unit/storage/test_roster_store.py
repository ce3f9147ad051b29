"""Rosters on disk: taken in whole or not at all."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest

from fakes.roster_disk import KEYS, NOW_US, RosterDisk, ask
from fakes.rosters import make_body, make_header, make_roster, rule, seal
from fakes.vectors import DAMAGED, DELTA, DELTA_RESULT, DOMAIN, NOW_S, ROSTER, VECTORS
from posthouse.domain.finding import Finding
from posthouse.domain.roster import Arrival
from posthouse.errors import RosterRefused
from posthouse.mail.address import unquote_local_part
from posthouse.ports_roster import RosterNote
from posthouse.proto.roster_delta import encode_delta, find_changes
from posthouse.proto.roster_file import parse_head


@pytest.fixture
def disk(tmp_path: Path) -> RosterDisk:
    return RosterDisk(tmp_path / "rosters")


def make_delta(old: bytes, new: bytes) -> bytes:
    head, fresh = parse_head(old), parse_head(new)
    changes = find_changes(old[head.body_offset :], new[fresh.body_offset :], 16)
    return encode_delta(head.header.serial, fresh.octets, *changes)


def test_the_roster_of_the_vectors_is_put_in_force(disk: RosterDisk) -> None:
    """The example is taken in, kept octet for octet, and answers its look-ups."""
    assert disk.open() is None
    taken = disk.take_in(ROSTER)
    assert taken.arrival is Arrival.PUT_IN_FORCE
    assert disk.files.find_file(DOMAIN, taken.facts).read_bytes() == ROSTER
    roster = disk.get()
    findings = {
        "digest": Finding.VOUCHED,
        "absent": Finding.ABSENT,
        "accept": Finding.RULE,
        "reject": Finding.ABSENT,
        "trap": Finding.TRAP,
    }
    for example in VECTORS["lookups"]:
        content = unquote_local_part(example["address"].rpartition("@")[0])
        assert ask(roster, content).finding is findings[example["finding"]]
    assert ask(roster, "Marta+x").canonical == f"marta@{DOMAIN}"
    assert ask(roster, "ops+Night").canonical == f"ops+night@{DOMAIN}"
    assert ask(roster, "marta").serial == VECTORS["roster"]["serial"]


def test_the_delta_of_the_vectors_gives_the_result(disk: RosterDisk) -> None:
    """The example delta turns the roster in force into the result, octet for octet."""
    disk.take_in(ROSTER)
    taken = disk.take_in(DELTA)
    assert taken.arrival is Arrival.PUT_IN_FORCE
    assert disk.files.find_file(DOMAIN, taken.facts).read_bytes() == DELTA_RESULT
    assert ask(disk.get(), "hartley").finding is Finding.VOUCHED
    assert ask(disk.get(), '"marta lee"').finding is Finding.ABSENT


@pytest.mark.parametrize("check", DAMAGED)
def test_the_damaged_files_of_the_vectors_are_refused(disk: RosterDisk, check: str) -> None:
    """Each damaged example is refused by the check that it names, and changes nothing."""
    disk.take_in(ROSTER)
    before = disk.names()
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(DAMAGED[check])
    assert caught.value.check == check
    assert disk.serial() == VECTORS["roster"]["serial"]
    assert disk.names() == before


def test_every_flipped_octet_is_refused(disk: RosterDisk) -> None:
    """Whichever octet of a file is damaged, it is refused and nothing changes."""
    disk.take_in(ROSTER)
    state, names = disk.files.get_state(DOMAIN), disk.names()
    for place in range(len(DELTA_RESULT)):
        for flip in (0x01, 0x80):
            damaged = bytearray(DELTA_RESULT)
            damaged[place] ^= flip
            with pytest.raises(RosterRefused):
                disk.take_in(bytes(damaged))
    assert disk.files.get_state(DOMAIN) == state
    assert disk.names() == names
    assert ask(disk.get(), "marta").finding is Finding.VOUCHED


def test_every_flipped_octet_of_a_delta_is_refused(disk: RosterDisk) -> None:
    """The same for a delta; each refusal asks for the whole file."""
    disk.take_in(ROSTER)
    state = disk.files.get_state(DOMAIN)
    for place in range(len(DELTA)):
        damaged = bytearray(DELTA)
        damaged[place] ^= 0x01
        with pytest.raises(RosterRefused):
            disk.take_in(bytes(damaged))
    assert disk.files.get_state(DOMAIN) == state


def test_truncated_files_are_refused(disk: RosterDisk) -> None:
    """A file or delta that ends early, or goes on, is refused at every length."""
    disk.take_in(ROSTER)
    for data in (DELTA_RESULT, DELTA):
        for end in range(0, len(data), 7):
            with pytest.raises(RosterRefused):
                disk.take_in(data[:end])
        with pytest.raises(RosterRefused):
            disk.take_in(data + b"\0")
    assert disk.serial() == VECTORS["roster"]["serial"]


def test_a_delta_of_nothing_is_refused(disk: RosterDisk) -> None:
    """Without a roster in force, or with another one, a delta asks for the whole file."""
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(DELTA)
    assert caught.value.check == "delta"
    disk.take_in(make_roster(serial=NOW_S - 5))
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(DELTA)
    assert caught.value.check == "delta"


def test_a_billion_entries_are_not_read(disk: RosterDisk) -> None:
    """A count that the length does not bear out is refused before the body is looked at."""
    header = make_header()
    body = make_body(header, ["alice"])
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(seal(header, body, count=50_000_000))
    assert caught.value.check == "length"
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(ROSTER.replace(b'"count":5', b'"count":1000000000'))
    assert caught.value.check == "header"


def test_hostile_patterns_are_refused(disk: RosterDisk) -> None:
    """A rule that RE2 does not take within its bounds makes the file worthless."""
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(make_roster(rules=(rule("(x{1000}){1000}", "accept"),)))
    assert caught.value.check == "rules"


def test_other_keys_are_refused(disk: RosterDisk) -> None:
    """Another domain, party, signing key or roster key: refused by name."""
    data = make_roster()
    for change, check in (
        ({"domain": "other.example"}, "domain"),
        ({"party": "other.example"}, "publisher"),
        ({"public_keys": (b"\1" * 32,)}, "publisher"),
        ({"roster_keys": (b"\1" * 32,)}, "key"),
    ):
        with pytest.raises(RosterRefused) as caught:
            disk.take_in(data, keys=msgspec.structs.replace(KEYS, **change))
        assert caught.value.check == check
    assert disk.open() is None


def test_roll_back_is_refused_and_the_same_is_no_news(disk: RosterDisk) -> None:
    """A lower serial, or the same with other octets, is refused; the same file changes nothing."""
    data = make_roster(["alice"], serial=100)
    disk.take_in(data)
    assert disk.take_in(data).arrival is Arrival.NOT_MODIFIED
    for other in (make_roster(["bob"], serial=99), make_roster(["bob"], serial=100)):
        with pytest.raises(RosterRefused) as caught:
            disk.take_in(other)
        assert caught.value.check == "serial"
    assert ask(disk.get(), "alice").finding is Finding.VOUCHED
    disk.files.forget_serials(DOMAIN)
    assert disk.take_in(make_roster(["bob"], serial=99)).arrival is Arrival.PUT_IN_FORCE
    assert disk.serial() == 99


def test_a_damaged_copy_of_what_is_in_force_is_refused(disk: RosterDisk) -> None:
    """The head in force with another body is not taken for the same file."""
    data = make_roster(["alice"], serial=100)
    disk.take_in(data)
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(data[:-1] + bytes([data[-1] ^ 1]))
    assert caught.value.check in ("hash", "order")


def test_a_shrunken_roster_waits_for_the_operator(disk: RosterDisk) -> None:
    """What loses too much is set aside, survives the same file again, and can be accepted."""
    disk.take_in(make_roster([f"u{n}" for n in range(99)], serial=100))
    small = make_roster(["u1"], serial=200)
    taken = disk.take_in(small)
    assert taken.arrival is Arrival.SET_ASIDE
    assert "98 of 100" in taken.why
    assert disk.serial() == 100
    assert disk.take_in(small).arrival is Arrival.NOT_MODIFIED
    with pytest.raises(RosterRefused):
        disk.take_in(make_roster([f"u{n}" for n in range(99)], serial=150))
    with pytest.raises(KeyError):
        disk.files.accept(KEYS, 150, now_us=NOW_US)
    disk.files.accept(KEYS, 200, now_us=NOW_US)
    assert disk.serial() == 200
    assert disk.files.get_state(DOMAIN).set_aside is None
    assert ask(disk.get(), "u2").finding is Finding.ABSENT
    assert ask(disk.get(), "u1").finding is Finding.VOUCHED
    assert len([name for name in disk.names() if name.endswith(".roster")]) == 1


def test_a_later_roster_replaces_what_is_set_aside(disk: RosterDisk) -> None:
    """The next roster is judged against the one in force, and clears what was set aside."""
    disk.take_in(make_roster([f"u{n}" for n in range(99)], serial=100))
    disk.take_in(make_roster(["u1"], serial=200))
    disk.take_in(make_roster([f"u{n}" for n in range(98)], serial=300))
    state = disk.files.get_state(DOMAIN)
    assert state.set_aside is None
    assert disk.serial() == 300
    with pytest.raises(KeyError):
        disk.files.accept(KEYS, 200, now_us=NOW_US)


def test_expired_rosters_cannot_be_accepted(disk: RosterDisk) -> None:
    """What was set aside is judged again by the time at which it is accepted."""
    disk.take_in(make_roster([], serial=100))
    assert disk.serial() == 0
    with pytest.raises(RosterRefused) as caught:
        disk.files.accept(KEYS, 100, now_us=NOW_US + 8 * 86_400 * 1_000_000)
    assert caught.value.check == "times"
    disk.files.accept(KEYS, 100, now_us=NOW_US)
    assert disk.serial() == 100


def test_a_stale_roster_vouches_but_proves_nothing(disk: RosterDisk) -> None:
    """From its expiry on, answers say that they are stale, and what its owner wishes then."""
    disk.take_in(ROSTER)
    roster = disk.get()
    assert not ask(roster, "nobody").stale
    disk.now_us = roster.expires_s * 1_000_000
    assert ask(roster, "nobody").stale
    assert ask(roster, "marta").stale
    assert ask(roster, "nobody").when_stale == "defer"
    assert roster.describe()["stale"] is True


def test_a_swap_is_whole(disk: RosterDisk) -> None:
    """Who holds the old roster goes on with it; who opens again has the new one."""
    big = [f"user{n}" for n in range(40_000)]  # large enough to be mapped
    disk.take_in(make_roster(big, serial=100))
    old = disk.get()
    version = disk.files.get_version(DOMAIN)
    disk.take_in(make_roster([*big, "late"], serial=200))
    assert disk.files.get_version(DOMAIN) != version
    new = disk.get()
    assert ask(old, "late").finding is Finding.ABSENT
    assert all(ask(old, user).finding is Finding.VOUCHED for user in big[::997])
    assert ask(new, "late").finding is Finding.VOUCHED
    assert all(ask(new, user).finding is Finding.VOUCHED for user in big)
    assert ask(new, "user40000").finding is Finding.ABSENT
    old.close()
    new.close()


def test_large_deltas_apply(disk: RosterDisk) -> None:
    """Changes anywhere in a mapped body give the new file octet for octet."""
    old = make_roster([f"user{n}" for n in range(30_000)], serial=100)
    new = make_roster([f"user{n}" for n in range(500, 30_700)], serial=200)
    disk.take_in(old)
    delta = make_delta(old, new)
    assert len(delta) < 64 << 10
    taken = disk.take_in(delta)
    assert disk.files.find_file(DOMAIN, taken.facts).read_bytes() == new


def test_damage_on_disk_is_found_at_the_start(disk: RosterDisk) -> None:
    """A file that rotted is taken out of force at the start; the same file is welcome again."""
    taken = disk.take_in(ROSTER)
    assert disk.files.verify(KEYS).in_force is not None
    path = disk.files.find_file(DOMAIN, taken.facts)
    path.write_bytes(ROSTER[:-1] + bytes([ROSTER[-1] ^ 1]))
    assert disk.files.verify(KEYS).in_force is None
    assert disk.open() is None
    assert disk.take_in(ROSTER).arrival is Arrival.PUT_IN_FORCE
    assert ask(disk.get(), "marta").finding is Finding.VOUCHED


def test_a_damaged_index_is_made_again(disk: RosterDisk) -> None:
    """An index that rotted is done without in look-ups, and made again at the start."""
    disk.take_in(ROSTER)
    (index,) = disk.directory.glob("*.buckets")
    sound = index.read_bytes()
    for damage in (b"", sound[:-1], b"x" * 200, sound[:80] + b"\7" + sound[81:]):
        index.write_bytes(damage)
        assert ask(disk.get(), "marta").finding is Finding.VOUCHED
        assert ask(disk.get(), "nobody").finding is Finding.ABSENT
        disk.files.verify(KEYS)
        assert index.read_bytes() == sound


def test_leftovers_are_cleared(disk: RosterDisk, tmp_path: Path) -> None:
    """What a crash left behind is cleared at the start; what is named by a state is kept."""
    disk.take_in(ROSTER)
    names = disk.names()
    (disk.directory / "incoming" / f"{DOMAIN}.half").write_bytes(b"half a file")
    (disk.directory / f"{DOMAIN}.7.{'0' * 16}.roster").write_bytes(b"orphan")
    (disk.directory / ".new-abc").write_bytes(b"half a state")
    again = RosterDisk(disk.directory)
    assert again.names() == names
    assert list((disk.directory / "incoming").iterdir()) == []
    assert ask(again.get(), "marta").finding is Finding.VOUCHED


def test_other_domains_are_removed(disk: RosterDisk) -> None:
    """Rosters of domains that are no longer configured go; those of the others stay."""
    disk.take_in(ROSTER)
    disk.files.leave_note(DOMAIN, RosterNote(problem="x"))
    disk.files.keep_only([DOMAIN, "other.example"])
    assert disk.open() is not None
    disk.files.keep_only(["coach.example.net", "example"])
    assert disk.names() == ["incoming"]


def test_notes_come_back(disk: RosterDisk) -> None:
    """What the subscriber leaves for `status` is read again; nothing is no trouble."""
    assert disk.files.read_note(DOMAIN) == RosterNote()
    note = RosterNote(source="https://x/", asked_us=1, answered_us=2, next_us=3, problem="ä")
    disk.files.leave_note(DOMAIN, note)
    assert disk.files.read_note(DOMAIN) == note


def test_every_width_and_crowding_is_searched_right(disk: RosterDisk) -> None:
    """Bodies whose digests crowd into one bucket are searched by halves, with the same answers."""
    from posthouse.domain.digests import make_digest

    header = make_header()
    digest = make_digest(header.digest, KEYS.roster_keys[0])
    postmaster = digest(f"postmaster@{DOMAIN}")
    crowd = [postmaster[:4] + number.to_bytes(12, "big") for number in range(500)]
    data = seal(header, b"".join(sorted({postmaster, *crowd})))
    disk.take_in(data)
    facts = disk.files.get_state(DOMAIN).in_force
    assert facts is not None
    body = disk.files.open_body(DOMAIN, facts)
    assert all(body.holds(one) for one in (*crowd, postmaster))
    assert not body.holds(postmaster[:4] + (500).to_bytes(12, "big"))
    assert not body.holds(postmaster[:4] + b"\xff" * 12)
    assert not body.holds(b"\0" * 16)
    assert not body.holds(b"\xff" * 16)
    body.close()


def test_base64_is_no_roster(disk: RosterDisk) -> None:
    """A file in the wrong encoding is refused by its first line."""
    with pytest.raises(RosterRefused) as caught:
        disk.take_in(base64.b64encode(ROSTER))
    assert caught.value.check == "form"

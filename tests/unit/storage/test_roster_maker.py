"""Making rosters: what they hold, what keeps them back, what changes between two of them."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.source import ListSource
from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.recipients import Fold
from posthouse.errors import (
    PublishRefused,
    RosterRefused,
    SourceFailed,
    StorageBroken,
    StorageBusy,
)
from posthouse.mail.roster import HmacDigest, RosterLimits, RosterPolicy, RosterRule
from posthouse.ports_publish import BuildReport, DigestOrder, RosterOrder, RosterReplyKind
from posthouse.ports_roster import RosterKeys
from posthouse.ports_sources import Harvest
from posthouse.proto import signing
from posthouse.storage.digest_sorter import HashJob, hash_and_sort
from posthouse.storage.roster_body import RosterBody
from posthouse.storage.roster_intake import check_whole, expand_delta
from posthouse.storage.roster_maker import RosterMaker, Signer
from posthouse.storage.roster_offers import RosterOffers

KEY = bytes(range(32))
DAY = 86_400
START = 1_800_000_000
LIMITS = RosterLimits(max_message_bytes=52_428_800, smtputf8=True, eight_bit_mime=True)
POLICY = RosterPolicy(blocking="allowed", when_stale="defer")


class Bench:
    """A maker with a clock, a source and what backups would do with the results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = START
        self.signer = Signer(party="example.com", private_key=signing.generate_private_key())
        self.source = ListSource([f"user{number}@example.com" for number in range(50)])
        self.maker = RosterMaker(root, self.signer, now_s=lambda: self.now_s, cores=1)
        self.offers = RosterOffers(root)
        self.keys = RosterKeys(
            domain="example.com",
            party="example.com",
            public_keys=(self.signer.public_key,),
            roster_keys=(KEY,),
        )

    def order(self, **changes: Any) -> RosterOrder:
        order = RosterOrder(
            domain="example.com",
            sources=(self.source,),
            keys=(KEY,),
            limits=LIMITS,
            policy=POLICY,
        )
        return msgspec.structs.replace(order, **changes)

    def make(
        self, *, accept_loss: bool = False, new_salt: bool = False, **changes: Any
    ) -> BuildReport:
        [report] = self.maker.make(
            self.order(**changes), accept_loss=accept_loss, new_salt=new_salt
        )
        return report

    def open(self, report: BuildReport) -> RosterBody:
        check_whole(Path(report.path), self.keys, None, now_s=self.now_s)
        return RosterBody(Path(report.path), None)

    def names(self, report: BuildReport, locals_: Sequence[str], *, key: bytes = KEY) -> set[str]:
        body = RosterBody(Path(report.path), None)
        digest = make_digest(body.head.header.digest, key)
        found = {local for local in locals_ if body.holds(digest(f"{local}@example.com"))}
        body.close()
        return found

    def digests(self, report: BuildReport) -> set[bytes]:
        body = RosterBody(Path(report.path), None)
        octets = body.digests[:]
        body.close()
        return {octets[at : at + 16] for at in range(0, len(octets), 16)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "rosters")


def test_a_roster_names_everybody_and_postmaster(bench: Bench) -> None:
    """Folded, without repeats, without others; a backup's own code takes it."""
    bench.source.addresses = [
        "Alice@example.com",
        "alice",
        "ZOE\u0308",
        "x@example.net",
        "Ops+Night",
    ]
    report = bench.make()
    assert (report.published, report.serial, report.given, report.skipped) == (True, START, 4, 1)
    assert (report.count, report.decoys, report.added) == (4, 0, -1)
    everybody = ["alice", "zo\u00eb", "ops+night", "postmaster", "ops", "x", "Alice"]
    assert bench.names(report, everybody) == {"alice", "zo\u00eb", "ops+night", "postmaster"}
    header = bench.open(report).head.header
    assert (header.issued_at, header.expires_at) == ("2027-01-15T08:00:00Z", "2027-01-29T08:00:00Z")
    assert (header.limits, header.policy, header.mx) == (LIMITS, POLICY, ())
    assert header.publisher.key_id == signing.key_id(bench.signer.public_key)


def test_each_backup_has_a_roster_of_its_own(bench: Bench) -> None:
    """One reading of the sources serves all keys; their files have nothing in common."""
    other = os.urandom(32)
    reports = bench.maker.make(bench.order(keys=(KEY, other)))
    assert bench.source.reads == 1
    assert [report.key_id for report in reports] == [roster_key_id(KEY), roster_key_id(other)]
    assert bench.names(reports[1], ["user7", "nobody"], key=other) == {"user7"}
    assert not bench.digests(reports[0]) & bench.digests(reports[1])


def test_unchanged_rosters_are_left_alone(bench: Bench) -> None:
    """What says the same is not published again until it needs new dates; then it is."""
    first = bench.make()
    bench.now_s += DAY - 1
    again = bench.make()
    assert (again.published, again.serial, again.path) == (False, first.serial, first.path)
    bench.now_s += 1
    fresh = bench.make()
    assert (fresh.published, fresh.serial) == (True, START + DAY)
    assert (fresh.removed, fresh.added) == (0, 0)
    assert bench.make(refresh_seconds=600).published
    assert bench.make(refresh_seconds=600, valid_seconds=DAY).published


def test_serials_only_rise(bench: Bench) -> None:
    """A clock that went back, or a second build within a second, gives the next number."""
    first = bench.make()
    bench.source.addresses.append("new")
    assert bench.make().serial == first.serial + 1
    bench.now_s -= 100 * DAY
    bench.source.addresses.append("newer")
    third = bench.make()
    assert third.serial == first.serial + 2
    Path(third.path).unlink()
    bench.source.addresses.append("newest")
    assert bench.make().serial == first.serial + 3


def test_changes_reach_a_backup_as_deltas(bench: Bench, tmp_path: Path) -> None:
    """From any serial that is still known a delta leads, octet for octet, to the file in force."""
    reports = [bench.make()]
    for number in range(1, 6):
        bench.now_s += 60
        bench.source.addresses.remove(f"user{number}@example.com")
        bench.source.addresses.append(f"new{number}")
        if number == 4:
            bench.source.addresses.remove("new3")
            bench.source.addresses.append("user2")
        copy = tmp_path / str(number)
        copy.write_bytes(Path(reports[-1].path).read_bytes())
        reports.append(bench.make())
        assert (reports[-1].removed, reports[-1].added) == ((1, 1) if number != 4 else (2, 2))
    whole = Path(reports[-1].path).read_bytes()
    for number, report in enumerate(reports[:-1], start=1):
        reply = bench.offers.find(
            "example.com", roster_key_id(KEY), since=report.serial, if_none_match='"7"'
        )
        assert reply is not None
        assert (reply.kind, reply.serial) == (RosterReplyKind.DELTA, reports[-1].serial)
        delta, target = tmp_path / "delta", tmp_path / "target"
        delta.write_bytes(reply.body)
        old = RosterBody(tmp_path / str(number), None)
        expand_delta(delta, target, old, bench.keys, now_s=bench.now_s)
        old.close()
        assert target.read_bytes() == whole
    assert len(list((bench.root / "example.com" / roster_key_id(KEY)).glob("*.roster"))) == 2


def test_answers_to_a_fetch(bench: Bench) -> None:
    """304 for the serial in force, the whole file otherwise, nothing for who is not known."""
    find = bench.offers.find
    key_id = roster_key_id(KEY)
    assert find("example.com", key_id, since=None, if_none_match="") is None
    report = bench.make()
    for header in (f'"{report.serial}"', f'W/"1", "{report.serial}"', "*"):
        reply = find("example.com", key_id, since=report.serial, if_none_match=header)
        assert reply is not None
        assert reply.kind is RosterReplyKind.NOT_MODIFIED
        assert reply.etag == f'"{report.serial}"'
    for since, header in (
        (None, ""),
        (None, "rubbish"),
        (1, '"1"'),
        (report.serial, ""),
        (9**15, ""),
    ):
        reply = find("example.com", key_id, since=since, if_none_match=header)
        assert reply is not None
        assert (reply.kind, reply.path) == (RosterReplyKind.WHOLE, report.path)
        assert reply.size_bytes == Path(report.path).stat().st_size
    assert find("example.com", "0" * 16, since=None, if_none_match="") is None
    assert find("../example.com", key_id, since=None, if_none_match="") is None
    assert find("example.com", "..", since=None, if_none_match="") is None


def test_other_digests_are_no_delta(bench: Bench) -> None:
    """Where key, length, scheme or salt changes, the whole file is all there is."""
    first = bench.make()
    bench.now_s += 60
    second = bench.make(digest=DigestOrder(length=32))
    assert (second.removed, second.added) == (-1, -1)
    reply = bench.offers.find(
        "example.com", roster_key_id(KEY), since=first.serial, if_none_match=""
    )
    assert reply is not None
    assert reply.kind is RosterReplyKind.WHOLE


def test_damaged_steps_are_done_without(bench: Bench) -> None:
    """A step that does not check out leads to the whole file, never to a wrong delta."""
    first = bench.make()
    bench.now_s += 60
    bench.source.addresses[0] = "other"
    bench.make()
    [step] = (bench.root / "example.com" / roster_key_id(KEY)).glob("*.step")
    data = step.read_bytes()
    step.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    reply = bench.offers.find(
        "example.com", roster_key_id(KEY), since=first.serial, if_none_match=""
    )
    assert reply is not None
    assert reply.kind is RosterReplyKind.WHOLE


def test_decoys_pad_and_stay(bench: Bench) -> None:
    """The padded count hides small changes; decoys come and go once, none returns."""
    padding: dict[str, Any] = {"decoy_percent": 10, "decoy_multiple": 20}
    reports = [bench.make(**padding)]
    assert (reports[0].count, reports[0].decoys) == (60, 9)
    seen: list[set[bytes]] = [bench.digests(reports[0])]
    changes: list[Callable[[], object]] = [
        lambda: bench.source.addresses.append("new1"),
        lambda: bench.source.addresses.append("new2"),
        lambda: bench.source.addresses.remove("new1"),
        lambda: bench.source.addresses.extend(["new3", "new4"]),
    ]
    for change in changes:
        bench.now_s += 60
        change()
        report = bench.make(**padding)
        assert report.count == 60
        assert report.removed == report.added
        seen.append(bench.digests(report))
    gone: set[bytes] = set()
    for before, after in itertools.pairwise(seen):
        assert not (after - before) & gone
        gone |= before - after
    bench.source.addresses += [f"more{number}" for number in range(14)]
    assert bench.make(**padding).count == 80


def test_a_failing_source_changes_nothing(bench: Bench) -> None:
    """A source that breaks off half way keeps the old roster in force."""
    report = bench.make()
    bench.source.failing = True
    bench.now_s += 3 * DAY
    with pytest.raises(SourceFailed, match="lost the connection"):
        bench.make()
    assert bench.names(report, ["user1"]) == {"user1"}
    assert bench.offers.get_serial("example.com", roster_key_id(KEY)) == report.serial


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ([], "names nobody in example.com; "),
        (["x@example.net"] * 3, r"names nobody in example.com \(3 are for other domains\)"),
        (["a", "<b@example.com>"], "1 of 2 entries are no addresses, such as <b@example.com>"),
    ],
)
def test_a_source_in_doubt_is_a_failure(bench: Bench, addresses: list[str], said: str) -> None:
    """An empty source, or one full of what are no addresses, is not believed."""
    bench.source.addresses = addresses
    with pytest.raises(SourceFailed, match=said):
        bench.make()


def test_a_few_slips_are_told(bench: Bench) -> None:
    """One entry in a hundred may be no address; it is named, and so is who loses all to the fold."""
    bench.source.addresses = [f"user{n}" for n in range(200)] + ["<b@example.com>", "..."]
    report = bench.make(how=Fold(dots="drop"))
    assert report.count == 201
    assert report.warnings == (
        "1 entries are no addresses and left out: <b@example.com>",
        "of 1 local parts nothing is left without dots: left out",
    )


def test_an_empty_source_may_be_meant(bench: Bench) -> None:
    """may_be_empty lets a source name nobody; the operator is told what backups will do."""
    bench.source.addresses = []
    bench.source.may_be_empty = True
    report = bench.make()
    assert report.count == 1
    assert "nobody but postmaster" in report.warnings[0]


def test_a_great_loss_needs_the_operator(bench: Bench) -> None:
    """A roster that shrinks too much is held back until it is accepted."""
    first = bench.make()
    bench.source.addresses = bench.source.addresses[:39]
    bench.now_s += 60
    with pytest.raises(PublishRefused, match="11 of 51 entries would go, more than 20 %"):
        bench.make()
    assert bench.offers.get_serial("example.com", roster_key_id(KEY)) == first.serial
    report = bench.make(accept_loss=True)
    assert (report.published, report.removed) == (True, 11)


def test_a_loss_keeps_no_other_backup_waiting(bench: Bench) -> None:
    """A backup that is new gets its first roster while another's is held back."""
    bench.make()
    bench.source.addresses = bench.source.addresses[:20]
    other = os.urandom(32)
    with pytest.raises(PublishRefused):
        bench.maker.make(bench.order(keys=(KEY, other)))
    assert bench.offers.get_serial("example.com", roster_key_id(other)) == START
    assert bench.offers.get_serial("example.com", roster_key_id(KEY)) == START


def test_a_source_that_changes_while_it_is_read_is_in_doubt(bench: Bench) -> None:
    """Two versions of a file are not one list."""
    source = ListSource(["a"], version="1")

    def change() -> None:
        source.version = "2"

    source = ListSource(["a"], version="1", while_reading=change)
    with pytest.raises(SourceFailed, match="changed while it was read"):
        bench.make(sources=(source,))


def test_rules_of_sources_follow_those_of_the_configuration(bench: Bench) -> None:
    """Patterns found in sources are added; too many, or bad ones, refuse the roster."""
    mine = RosterRule(match="a+", action="trap")
    theirs = RosterRule(match="b+", action="accept", note="virtual:1")
    bench.source = ListSource(["x"], rules=[theirs])
    assert bench.open(bench.make(rules=(mine,))).head.header.rules == (mine, theirs)
    with pytest.raises(SourceFailed, match="257 rules"):
        bench.make(rules=(mine,) * 256)
    with pytest.raises(RosterRefused, match="rule 1"):
        bench.make(rules=(RosterRule(match="(", action="accept"),))


def test_slow_digests_are_computed_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """scrypt costs only the changes, also after an interruption; a new salt costs all again."""
    slow: dict[str, Any] = {"digest": DigestOrder(scheme="scrypt", n=1024)}
    stretched: list[bytes] = []
    real = hashlib.scrypt

    def count(password: bytes, **arguments: Any) -> bytes:
        stretched.append(password)
        return real(password, **arguments)

    monkeypatch.setattr("posthouse.domain.digests.hashlib.scrypt", count)
    first = bench.make(**slow)
    # Postmaster is hashed for the roster, and once more by the code that reads it back.
    assert len(stretched) == 50 + 2
    assert bench.names(first, ["user7", "nobody"]) == {"user7"}
    bench.now_s += 60
    stretched.clear()
    bench.source.addresses.append("new")
    second = bench.make(**slow)
    assert len(stretched) == 1 + 2
    assert (second.removed, second.added) == (0, 1)
    cache = Path(second.path).parent / "digests.cache"
    cache.write_bytes(cache.read_bytes()[:-20])  # as after a power cut
    stretched.clear()
    bench.source.addresses.append("newer")
    bench.make(**slow)
    assert len(stretched) == 2 + 2
    stretched.clear()
    salted = bench.make(new_salt=True, **slow)
    assert len(stretched) == 52 + 2
    assert (salted.removed, salted.added) == (-1, -1)
    assert bench.names(salted, ["user7", "nobody"]) == {"user7"}


def test_people_who_left_are_forgotten_by_the_cache(bench: Bench) -> None:
    """The cache of slow digests does not keep whom no source names."""
    slow: dict[str, Any] = {"digest": DigestOrder(scheme="scrypt", n=1024)}
    cache = Path(bench.make(**slow).path).parent / "digests.cache"
    before = cache.stat().st_size
    bench.source.addresses = bench.source.addresses[:42]
    bench.now_s += 60
    bench.make(**slow)
    assert cache.stat().st_size == before - 8 * 48
    assert cache.stat().st_mode & 0o777 == 0o600


def test_one_builder_at_a_time(bench: Bench, tmp_path: Path) -> None:
    """A second build of the same roster is told to come later."""
    other = RosterMaker(tmp_path / "rosters", bench.signer, now_s=lambda: START, cores=1)
    failures: list[BaseException] = []

    def build() -> None:
        try:
            other.make(bench.order(sources=(ListSource(["a"]),)))
        except StorageBusy as error:
            failures.append(error)

    bench.source = ListSource(["a"], while_reading=build)
    assert bench.make().published
    assert "being made already" in str(failures[0])


def test_what_a_backup_would_refuse_is_not_published(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that does not read back as it should stays out of force, and leaves nothing."""
    monkeypatch.setattr(signing, "sign", lambda _key, _octets: bytes(64))
    with pytest.raises(StorageBroken, match="the roster just made is refused"):
        bench.make()
    assert bench.offers.get_serial("example.com", roster_key_id(KEY)) == 0
    names = {path.name for path in (bench.root / "example.com" / roster_key_id(KEY)).iterdir()}
    assert names == {"lock"}


def test_lost_state_is_told(bench: Bench) -> None:
    """Without its secrets a roster is not made anew in silence: decoys would show."""
    report = bench.make()
    (Path(report.path).parent / "state.json").write_text("{")
    bench.source.addresses.append("new")
    with pytest.raises(StorageBroken, match="remove it to begin with fresh salt"):
        bench.make()


def test_many_addresses_are_hashed_in_processes() -> None:
    """Workers and one process give the same body, repeats removed."""
    scheme = HmacDigest(length=16, key_id=roster_key_id(KEY))
    job = HashJob(Fold(), "example.com", ((scheme, KEY),))
    contents = [f"user{number % 90_000}" for number in range(100_000)]
    [here], given, _ = hash_and_sort(job, iter(contents), cores=1)
    [there], given_there, _ = hash_and_sort(job, iter(contents), cores=2)
    assert given == given_there == 100_000
    assert here.count == 90_000
    assert here.sha256() == there.sha256()


def test_without_processes_it_only_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no worker can be started, addresses are hashed right here."""
    monkeypatch.setattr("posthouse.storage.digest_sorter._prepare_worker", os.abort)
    scheme = HmacDigest(length=16, key_id=roster_key_id(KEY))
    job = HashJob(Fold(), "example.com", ((scheme, KEY),))
    contents = (f"user{number}" for number in range(70_000))
    [body], given, _ = hash_and_sort(job, contents, cores=2)
    assert (given, body.count) == (70_000, 70_000)


def test_a_failing_source_ends_the_processes() -> None:
    """What a source raises comes through, and no worker is left."""
    scheme = HmacDigest(length=16, key_id=roster_key_id(KEY))
    job = HashJob(Fold(), "example.com", ((scheme, KEY),))
    source = ListSource([f"user{number}" for number in range(150_000)])
    source.failing = True
    with pytest.raises(SourceFailed, match="lost the connection"):
        hash_and_sort(job, source.read("example.com", Harvest()), cores=2)


def test_a_build_can_be_stopped(bench: Bench) -> None:
    """Stopped while it reads or computes, a build ends and what it computed is kept."""
    bench.source.addresses = [f"user{number}" for number in range(3000)]
    with pytest.raises(StorageBusy, match="stopped"):
        bench.maker.make(bench.order(), stopped=lambda: True)
    bench.source.addresses = [f"user{number}" for number in range(200)]
    asked = itertools.count()
    slow = bench.order(digest=DigestOrder(scheme="scrypt", n=1024))
    with pytest.raises(StorageBusy, match="stopped"):
        bench.maker.make(slow, stopped=lambda: next(asked) >= 1)
    cache = bench.root / "example.com" / roster_key_id(KEY) / "digests.cache"
    assert cache.stat().st_size > 128 * 48
    assert bench.offers.get_serial("example.com", roster_key_id(KEY)) == 0

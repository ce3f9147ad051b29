"""What every RecipientDirectory promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.directory import SetDirectory, finding_of
from fakes.roster_disk import RosterDisk
from fakes.rosters import make_roster
from posthouse.domain.finding import Finding
from posthouse.domain.recipients import Fold, RecipientFile
from posthouse.mail.roster import HeaderFold
from posthouse.ports_recipients import RecipientDirectory
from posthouse.storage.recipient_lists import RecipientIndexes

Make = Callable[[str], RecipientDirectory]


@pytest.fixture(params=["index", "set", "roster"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a directory of example.com from the text of a recipients file."""

    def make_index(text: str) -> RecipientDirectory:
        source = tmp_path / "list"
        source.write_text(text)
        indexes = RecipientIndexes(tmp_path / "recipients")
        indexes.prepare()
        indexes.publish("example.com", str(source), now_us=0, refuse_empty=False)
        directory = indexes.open("example.com")
        assert directory is not None
        return directory

    def make_set(text: str) -> RecipientDirectory:
        file = RecipientFile("example.com")
        contents = list(file.read_lines(text.split("\n")))
        return SetDirectory(contents, catch_all=file.catch_all, how=file.fold)

    def make_of_roster(text: str) -> RecipientDirectory:
        file = RecipientFile("example.com")
        contents = list(file.read_lines(text.split("\n")))
        how = HeaderFold(case=file.fold.case, delimiters=file.fold.delimiters, dots=file.fold.dots)
        disk = RosterDisk(tmp_path / "rosters", domain="example.com")
        disk.take_in(
            make_roster(contents, domain="example.com", fold=how, catch_all=file.catch_all),
            keys=disk.keys,
        )
        state = disk.files.get_state("example.com")
        if state.set_aside is not None:  # it names nobody
            disk.files.accept(disk.keys, state.set_aside.known.serial, now_us=disk.now_us)
        return disk.get()

    return {"index": make_index, "set": make_set, "roster": make_of_roster}[request.param]


def test_listed_are_vouched(make: Make) -> None:
    """Listed recipients exist, in any case and with a subaddress."""
    directory = make("Alice@example.com OK\nbob\n")
    for local in ("alice", "ALICE", "aLiCe+news", "alice+", "bob", "bob+a+b"):
        assert finding_of(directory, local) is Finding.VOUCHED, local


def test_others_are_absent(make: Make) -> None:
    """Who is not listed does not exist."""
    directory = make("alice\n")
    for local in ("", "bob", "alic", "alicee", "+alice", "alice-x", "alice@example.com", "x" * 255):
        assert finding_of(directory, local) is Finding.ABSENT, local


def test_listed_subaddress_alone(make: Make) -> None:
    """A listed subaddress vouches for itself, not for what stands before the delimiter."""
    directory = make("ops+night\n")
    assert finding_of(directory, "ops+Night") is Finding.VOUCHED
    assert finding_of(directory, "ops") is Finding.ABSENT
    assert finding_of(directory, "ops+day") is Finding.ABSENT


def test_catch_all(make: Make) -> None:
    """With a catch-all nobody is absent, and the listed are still told apart."""
    directory = make("@example.com\nalice\n")
    assert finding_of(directory, "alice") is Finding.VOUCHED
    assert finding_of(directory, "whoever") is Finding.CATCH_ALL


def test_reads_as_the_primary_reads(make: Make) -> None:
    """Options of the file govern look-ups."""
    directory = make("% case = preserve\n% delimiters = -=\n% dots = drop\nA.lice\n")
    assert finding_of(directory, "Al.ice-x.y") is Finding.VOUCHED
    assert finding_of(directory, "Alice=x") is Finding.VOUCHED
    assert finding_of(directory, "alice") is Finding.ABSENT
    assert finding_of(directory, "Alice+x") is Finding.ABSENT
    assert finding_of(directory, "...") is Finding.ABSENT


def test_nobody(make: Make) -> None:
    """An empty list proves everybody absent."""
    assert finding_of(make(""), "alice") is Finding.ABSENT


def test_total(make: Make) -> None:
    """Whatever is asked, a finding comes back."""
    directory = make("zo\xeb\n")
    assert finding_of(directory, "ZOE\u0308") is Finding.VOUCHED
    for local in ("\udcff", "\ud800", "\x00", "\U0010ffff", "a\nb", " ", "x" * 100_000):
        assert finding_of(directory, local) is Finding.ABSENT


def test_describes_itself(make: Make) -> None:
    """`status` can show where the list came from and how large it is."""
    facts = make("alice\nbob\n").describe()
    assert facts["entries"] in (2, 3)  # a roster has postmaster too
    assert {"source", "loaded_at", "problem"} <= facts.keys()


def test_unknown_is_not_absent() -> None:
    """The fake can stand for a domain whose list is not loaded."""
    assert finding_of(SetDirectory(unknown=True), "alice") is Finding.UNKNOWN
    assert finding_of(SetDirectory(["Alice"], how=Fold()), "alice") is Finding.VOUCHED

"""Recipient indexes on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from posthouse.domain.finding import Finding
from posthouse.domain.recipients import DIGEST_BYTES, Fold, make_digester
from posthouse.errors import StorageBroken
from posthouse.ports_recipients import Fingerprint, RecipientListFacts
from posthouse.storage.recipient_index import IndexBuilder, IndexDirectory

FACTS = RecipientListFacts(
    domain="example.com",
    entries=0,
    skipped=2,
    catch_all=False,
    source="/etc/list",
    source_version=Fingerprint(size_bytes=1, mtime_ns=2, ctime_ns=3, inode=4),
    built_us=1_700_000_000_000_000,
)


def build(path: Path, texts: list[str], how: Fold | None = None) -> IndexDirectory:
    builder = IndexBuilder()
    assert builder.add_all(iter(texts), 10**6)
    builder.write(path, FACTS, how or Fold())
    return IndexDirectory(path)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 300, 20_000])
def test_finds_all_and_no_other(tmp_path: Path, count: int) -> None:
    """Whatever the size, read or mapped: the listed are found, others are not."""
    texts = [f"user{number}" for number in range(count)]
    directory = build(tmp_path / "i", texts)
    assert all(directory.find(text).finding is Finding.VOUCHED for text in texts)
    assert all(directory.find(f"{text}x").finding is Finding.ABSENT for text in texts[:500])
    assert directory.find("nobody").finding is Finding.ABSENT
    assert directory.facts.entries == count
    assert directory.verify()


def test_repeats_are_counted_once(tmp_path: Path) -> None:
    """An address that stands in the file twice is one entry."""
    assert build(tmp_path / "i", ["a", "b", "a"]).facts.entries == 2


def test_more_than_the_limit_is_refused() -> None:
    """The builder stops at the limit it is given."""
    assert IndexBuilder().add_all(iter("ab"), 2)
    assert not IndexBuilder().add_all(iter("abc"), 2)


def test_digest_across_two_others_is_no_hit(tmp_path: Path) -> None:
    """Octets that happen to lie across two digests vouch for nobody."""
    path = tmp_path / "i"
    directory = build(path, ["a", "b"])
    key = directory._header.key
    wanted = make_digester(key)("wanted")
    # Two digests in the one bucket whose seam spells the digest of "wanted" …
    seam = bytes(8) + wanted + bytes(8)
    assert len(seam) == 2 * DIGEST_BYTES
    data = path.read_bytes()
    path.write_bytes(data[: -2 * DIGEST_BYTES] + seam)
    forged = IndexDirectory(path)
    assert forged.find("wanted").finding is Finding.ABSENT
    assert not forged.verify()
    # … and a true one behind the seam is still found.
    path.write_bytes(data[: -2 * DIGEST_BYTES] + wanted[1:] + b"\0" + wanted)
    assert IndexDirectory(path).find("wanted").finding is Finding.VOUCHED


def test_describes_itself(tmp_path: Path) -> None:
    """`status` gets source, counts and age."""
    assert build(tmp_path / "i", ["a"]).describe() == {
        "source": "/etc/list",
        "entries": 1,
        "skipped": 2,
        "catch_all": False,
        "loaded_at": "2023-11-14T22:13:20Z",
        "problem": "",
    }


def test_stays_whole_when_replaced(tmp_path: Path) -> None:
    """Who holds an index goes on with it after its file was replaced, mapped or not."""
    path = tmp_path / "i"
    old = build(path, [f"user{number}" for number in range(20_000)])
    new = build(path, ["other"])
    assert old.find("user7").finding is Finding.VOUCHED
    assert new.find("user7").finding is Finding.ABSENT
    assert os.listdir(tmp_path) == ["i"]


@pytest.mark.parametrize("count", [3, 20_000])
def test_cut_short_anywhere_is_noticed(tmp_path: Path, count: int) -> None:
    """A truncated or lengthened file is refused at open."""
    path = tmp_path / "i"
    build(path, [f"user{number}" for number in range(count)])
    data = path.read_bytes()
    for length in (*range(0, 700, 13), len(data) // 2, len(data) - 1):
        path.write_bytes(data[: min(length, len(data) - 1)])
        with pytest.raises(StorageBroken):
            IndexDirectory(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(StorageBroken):
        IndexDirectory(path)


def test_any_damaged_octet_is_noticed(tmp_path: Path) -> None:
    """A flipped octet is refused at open or found by `verify`; look-ups never raise."""
    path = tmp_path / "i"
    build(path, ["a", "b", "c"])
    data = path.read_bytes()
    padding = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        try:
            directory = IndexDirectory(path)
        except StorageBroken:
            continue
        assert directory.find("a").finding in Finding
        padding += directory.verify()
    assert padding < DIGEST_BYTES  # zeros behind the header hold nothing


def test_other_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index whose numbers would be read wrongly is built anew."""
    path = tmp_path / "i"
    other = "big" if sys.byteorder == "little" else "little"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "byteorder", other)
        IndexBuilder().write(path, FACTS, Fold())
    with pytest.raises(StorageBroken, match="another machine"):
        IndexDirectory(path)

"""Files as sources: text, CSV, passwd with aliases, Postfix's tables of patterns and indexes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peers.postfix_maps import Maps
from posthouse.domain.recipients import Fold
from posthouse.domain.source_specs import parse_source
from posthouse.errors import SourceFailed
from posthouse.node_sources import open_source
from posthouse.ports_sources import Harvest


def read(
    written: object, domain: str = "example.com", how: Fold | None = None
) -> tuple[set[str], Harvest]:
    harvest = Harvest()
    source = open_source(parse_source(written), how or Fold())
    return set(source.read(domain, harvest)), harvest


def put(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def test_text_gives_contents_as_they_are_spelled(tmp_path: Path) -> None:
    """Case and dots are the roster's affair: a text file gives what it says."""
    file = put(tmp_path / "l", '% dots = drop\nAlice.A@example.com OK\n"marta lee"\n@example.com\n')
    found, harvest = read(f"file:{file}", how=Fold(dots="drop"))
    assert found == {"Alice.A", "marta lee"}
    assert harvest.catch_all
    with pytest.raises(SourceFailed, match="options differ from `fold`"):
        read(f"file:{file}")


def test_text_is_believed_whole_or_not_at_all(tmp_path: Path) -> None:
    """One bad line, named with its number, refuses the file."""
    file = put(tmp_path / "l", "alice\n<bob>\n")
    with pytest.raises(SourceFailed, match=r"l:2: not an address or local part: <bob>"):
        read(f"file:{file}")


def test_csv(tmp_path: Path) -> None:
    """Columns by name or number; short lines, unknown columns and stray quotes are mistakes."""
    file = put(tmp_path / "c", 'id,mail,alias\n1,a@example.com,"b@example.com"\n\n2,c,\n')
    assert read(f"csv:{file}?column=mail,alias")[0] == {"a", "b", "c"}
    plain = put(tmp_path / "p", "1\ta@example.com\n2\tb@example.com\n")
    assert read(f"csv:{plain}?column=2&delimiter=tab")[0] == {"a", "b"}
    with pytest.raises(SourceFailed, match="c:1: no column 'email'"):
        read(f"csv:{file}?column=email")
    with pytest.raises(SourceFailed, match="c:5: 1 columns, not 2"):
        read(f"csv:{put(file, file.read_text() + 'x' + chr(10))}?column=mail")
    with pytest.raises(SourceFailed, match="p:1: "):
        read(f"csv:{put(plain, chr(34) + 'a' + chr(34) + 'b' + chr(10))}")


def test_unreadable_entries_are_counted(tmp_path: Path) -> None:
    """Slips of a directory are counted with examples, never guessed at."""
    rows = ["a@example.com", "Bob <bob@example.com>", "c@@example.com", "d\u00a0d@example.com", ""]
    _, harvest = read(f"csv:{put(tmp_path / 'c', chr(10).join(rows))}")
    assert harvest.unreadable == 3
    assert harvest.examples == ["Bob <bob@example.com>", "c@@example.com", "d\\xa0d@example.com"]


PASSWD = """\
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1000:Alice,,,:/home/alice:/bin/bash
bob:x:59999:100::/home/bob:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
+::::::
"""
ALIASES = """\
# comment
postmaster: root
Sales.Team:alice,
   bob, :include:/etc/list
"marta lee": alice
abuse :	root
"""


def test_passwd_and_aliases(tmp_path: Path) -> None:
    """Accounts within the range of uids and every name of the aliases, values unread."""
    passwd, aliases = put(tmp_path / "passwd", PASSWD), put(tmp_path / "aliases", ALIASES)
    names = {"postmaster", "Sales.Team", "marta lee", "abuse"}
    assert read(f"passwd:{passwd}?aliases={aliases}")[0] == {"alice", "bob", *names}
    assert read(f"passwd:{passwd}?aliases=&uid=0-999")[0] == {"root"}
    assert read({"passwd": str(passwd), "aliases": ""})[0] == {"alice", "bob"}
    with pytest.raises(SourceFailed, match="none: No such file"):
        read(f"passwd:{passwd}?aliases={tmp_path}/none")
    with pytest.raises(SourceFailed, match=r"aliases:2: no aliases\(5\) line"):
        read(f"passwd:{passwd}?aliases={put(aliases, 'a: b' + chr(10) + 'oops')}")
    with pytest.raises(SourceFailed, match=r"passwd:1: no passwd\(5\) line"):
        read(f"passwd:{put(passwd, 'alice:x:1000')}")


def test_patterns_become_rules(tmp_path: Path) -> None:
    """A table of patterns gives rules in its order; a line that cannot be one is named."""
    file = put(
        tmp_path / "recipients",
        "/^sales-[0-9]+@example\\.com$/ OK\n/^x@example\\.net$/ OK\n/^old-/ REJECT\n",
    )
    found, harvest = read(f"postfix:regexp:{file}")
    assert found == set()
    assert [(rule.match, rule.action, rule.note) for rule in harvest.rules] == [
        ("(?i)(?:sales-[0-9]+)", "accept", "recipients:1"),
        ("(?i)(?:old-).*", "reject", "recipients:3"),
    ]
    assert (harvest.skipped, harvest.catch_all) == (1, False)
    assert read(f"postfix:pcre:{put(file, '/@example.com/ OK')}")[1].catch_all
    with pytest.raises(SourceFailed, match="recipients:2: if and endif"):
        read(f"postfix:pcre:{put(file, '/^a@/ OK' + chr(10) + 'if /x/')}")


@pytest.mark.peers
def test_postmap_entries_of_every_form(tmp_path: Path) -> None:
    """Keys of virtual(5) and relay_recipient_maps: addresses, local parts, domains, catch-alls."""
    maps = Maps(tmp_path)
    file = maps.put("virtual", "example.com x\nalice y\nB@Example.com z\n@example.net q\n")
    maps.index("hash", file)
    written = f"postfix:hash:{file}?config={tmp_path}"
    found, harvest = read(written)
    assert found == {"alice", "b"}
    assert (harvest.catch_all, harvest.skipped) == (False, 2)
    assert read(written, domain="example.net")[1].catch_all
    (tmp_path / "virtual.db").write_bytes(b"no database")
    with pytest.raises(SourceFailed, match="postmap failed"):
        read(written)


def test_what_is_no_file(tmp_path: Path) -> None:
    """Missing files, directories, pipes and endless lines are failures, and nobody waits."""
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("none", "No such file"), ("pipe", "not a regular"), (".", "not a regular")):
        with pytest.raises(SourceFailed, match=said):
            read(f"csv:{tmp_path / name}")
    with pytest.raises(SourceFailed, match="longer than"):
        read(f"csv:{put(tmp_path / 'l', 'x' * 5_000_000)}")


def test_a_file_that_changes_under_the_reader_is_in_doubt(tmp_path: Path) -> None:
    """What was written to while it was read is refused; the version changes with it."""
    file = put(tmp_path / "c", "a@example.com\n")
    source = open_source(parse_source(f"csv:{file}"), Fold())
    before = source.get_version()
    reading = source.read("example.com", Harvest())
    assert next(reading) == "a"
    put(file, "a@example.com\nb@example.com\n")
    with pytest.raises(SourceFailed, match="changed while it was read"):
        list(reading)
    assert source.get_version() != before

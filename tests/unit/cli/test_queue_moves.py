"""Redirecting and dry runs, as an operator sees them, without a running node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unit.cli.test_cli_commands import BODY, Site


@pytest.fixture(name="site")
def make_site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("action", ["hold", "retry", "delete", "redirect", "export"])
def test_a_dry_run_shows_and_moves_nothing(site: Site, action: str) -> None:
    """Counts and the first rows, as text and as JSON; the queue stays as it is."""
    ids = site.fill()
    more = {"redirect": ("ann@example.org",), "export": ("-o", "out")}.get(action, ())
    choice = ("--recipient", "bob@example.com")
    done = site.run("queue", action, *more, *choice, "--dry-run")
    assert done.code == 0
    assert "3 " in done.out
    assert all(queue_id in done.out for queue_id in ids)
    document = json.loads(site.run("queue", action, *more, *choice, "--dry-run", "--json").out)
    assert (document["action"], document["dry_run"]) == (action, True)
    assert (document["messages"], document["recipients"]) == (3, 3)
    assert [one["id"] for one in document["first"]] == ids
    assert site.listed() == ids
    assert not (site.directory / "out").exists()


def test_redirect(site: Site) -> None:
    """What was held for one address is queued for another: same octets, original recipient kept."""
    ids = site.fill()
    site.run("queue", "hold", ids[0], ids[1])
    done = site.run(
        "queue", "redirect", "ann@example.org", "--state", "held", "--domain", "example.com"
    )
    assert (done.code, done.out) == (0, "2 recipients redirected to ann@example.org.\n")
    rows = [
        json.loads(line)
        for line in site.run("queue", "list", "--json", "--domain", "example.org").out.splitlines()
    ]
    fresh = [row for row in rows if row["id"] not in ids]
    assert [row["sender"] for row in fresh] == ["alice@sender.example", ""]
    for row in fresh:
        (recipient,) = row["recipients"]
        assert (recipient["address"], recipient["state"]) == ("ann@example.org", "queued")
        assert site.run("queue", "show", "--raw", row["id"]).raw == BODY
        exported = site.run("queue", "export", row["id"], "-o", "-").out
        assert "orcpt=rfc822;bob@example.com" in exported
    assert site.listed("--domain", "example.com") == [ids[2]]
    kept = site.run("queue", "show", ids[0], "--json").out
    assert [one["address"] for one in json.loads(kept)["recipients"]] == ["ann@example.org"]


@pytest.mark.parametrize(
    "address", ["ann@elsewhere.example", "ann", "<>", "a@b@c", "ann@example.com.evil"]
)
def test_a_redirect_makes_no_relay(site: Site, address: str) -> None:
    """Addresses at other domains are refused, and nothing is moved or put on hold."""
    ids = site.fill()
    done = site.run("queue", "redirect", address, "--all")
    assert done.code == 69
    assert "address" in done.err or "not at a domain" in done.err
    assert site.listed("--state", "queued") == ids


def test_a_redirect_of_nothing(site: Site) -> None:
    """Nothing that matches exits 1; no choice at all exits 2."""
    site.fill()
    assert site.run("queue", "redirect", "ann@example.org", "--state", "held").code == 1
    assert site.run("queue", "redirect", "ann@example.org").code == 2


def test_a_damaged_message_is_not_redirected(site: Site) -> None:
    """It stays, on hold, and is told; the others go on."""
    ids = site.fill()
    segment = next((site.directory / "data" / "spool" / "1").rglob("*.seg"))
    segment.write_bytes(segment.read_bytes().replace(b"Line", b"LINE"))
    done = site.run("queue", "redirect", "ann@example.org", "--recipient", "bob@example.com")
    assert done.code == 69
    assert "2 recipients redirected" in done.out
    assert "1 recipients stay on hold" in done.err
    assert site.listed("--recipient", "bob@example.com", "--state", "held") == [ids[1]]


@pytest.mark.parametrize("form", ["mbox", "maildir"])
def test_export_for_mail_programs(site: Site, form: str) -> None:
    """All chosen messages, the envelope on top; the queue stays as it is."""
    ids = site.fill()
    done = site.run("queue", "export", "--all", "--format", form, "-o", "out")
    assert (done.code, done.err) == (0, "")
    out = site.directory / "out"
    files = [out] if form == "mbox" else sorted((out / "new").iterdir())
    octets = b"".join(file.read_bytes() for file in files)
    assert octets.count(BODY.replace(b"\r\n", b"\n")) == 3
    assert octets.count(b"X-Posthouse-Sender: <alice@sender.example>\n") == 1
    assert site.listed() == ids
    again = site.run("queue", "export", "--all", "--format", form, "-o", "out")
    assert again.code == (2 if form == "mbox" else 0)
    assert (
        site.run("queue", "export", "--all", "--format", "mbox", "-o", "-").raw.count(b"\nFrom ")
        == 2
    )

"""From pairing to a user who blocks an address, and keys renewed under way: both sides for real."""

from __future__ import annotations

import email
import email.policy
import io
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from peers.primary import run_command
from peers.processes import wait_until
from peers.town import BACKUP, DOMAIN, Town
from posthouse.config_pairs import load_primary_pairing
from posthouse.errors import PeerFailure
from posthouse.proto import signing
from posthouse.proto.pairing import PrimaryPairing
from posthouse.transports.peers import HttpsPeer

pytestmark = pytest.mark.peers


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Both sides, and a sendmail program that lays down what it is given."""
    program = tmp_path / "sendmail"
    program.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/draft && mv {tmp_path}/draft {tmp_path}/mail\n"
    )
    program.chmod(0o755)
    town = Town(
        tmp_path,
        users=["alice", "bob"],
        sections={"pages": {"mail_via": f"sendmail:{program}", "name": "Example & Sons"}},
    )
    town.start()
    yield town
    town.stop()


def get_link(folder: Path) -> str:
    """The link in the mail that came."""
    wait_until((folder / "mail").exists, what="the mail with the link")
    message = email.message_from_bytes((folder / "mail").read_bytes(), policy=email.policy.default)
    assert message["To"] == f"alice@{DOMAIN}"
    assert message["From"] == f"postmaster@{DOMAIN}"
    body = message.get_body()
    assert body is not None
    found = re.search(r"http://\S+", body.get_content())
    assert found is not None
    (folder / "mail").unlink()
    return found[0]


def test_a_user_blocks_an_address(town: Town, tmp_path: Path) -> None:
    """The owner sees the backup with its count, blocks there (551 at RCPT), and unblocks."""
    town.send("alice")
    town.wait_state("agreed")
    base = f"{town.primary.base_url}mailbox/"
    with httpx2.Client(follow_redirects=True, trust_env=False) as browser:
        asked = browser.post(base, data={"address": f"Alice+shop@{DOMAIN}"})
        assert asked.status_code == 200
        link = get_link(tmp_path)
        assert b"Show the servers" in browser.get(link).content
        page = browser.post(link)
        assert str(page.url) == f"{base}servers"
        assert BACKUP in page.text
        assert 'class="number">1<' in page.text
        form = {
            name: re.search(rf'name="{name}" value="([^"]+)"', page.text)[1]  # type: ignore[index]
            for name in ("csrf", "agreement_id")
        }
        page = browser.post(f"{base}servers", data={**form, "blocked": "true"})
        assert "Refuses mail for you" in page.text
        wait_until(lambda: town.ask("alice") == "551 5.7.1", what="the block")
        assert town.ask("bob") == "250 2.1.5"
        page = browser.post(f"{base}servers", data={**form, "blocked": "false"})
        assert "Takes mail for you" in page.text
        wait_until(lambda: town.ask("alice") == "250 2.1.5", what="the block to be lifted")
        assert browser.post(link).status_code == 410


async def try_token(pairing: PrimaryPairing) -> int:
    """What the primary answers to the token of a pairing."""
    peer = HttpsPeer(
        pairing.party, pairing.base_url, token=pairing.token, spki_sha256=None, now_us=lambda: 0
    )
    try:
        path = f"v1/rosters/{DOMAIN}"
        return (await peer.download(path, io.BytesIO(), max_bytes=1 << 20)).status
    except PeerFailure as failure:
        return failure.status
    finally:
        await peer.close()


async def test_keys_are_renewed_without_a_gap(town: Town, tmp_path: Path) -> None:
    """Rosters and call-backs go on through both rotations; what was before is void afterwards."""
    town.send("alice")
    town.wait_state("agreed")
    theirs = town.backup.directory / "pairs" / f"{DOMAIN}.json"
    old = load_primary_pairing(theirs)

    fresh = str(tmp_path / "rotated.json")
    run_command(town.primary.file, "pair", "offer", "--to", BACKUP, "--rotate", "-o", fresh)
    town.primary.reload()
    assert await try_token(old) == 200
    assert town.ask("alice") == "250 2.1.5"
    run_command(town.backup.file, "pair", "accept", "--rotate", fresh)
    new = load_primary_pairing(theirs)
    os.kill(town.backup.running.pid, signal.SIGHUP)
    town.primary.wait_log("shows its new token")
    assert await try_token(old) == 401
    assert await try_token(new) == 200
    assert town.ask("alice") == "250 2.1.5"
    assert town.ask("nobody") == "550 5.1.1"
    # A roster of the new key is in force: somebody who is new in it is known.
    town.primary.set_users(["alice", "bob", "zed"])
    key_id = signing.key_id(new.roster_key)
    wait_until(
        lambda: bool(re.search(rf"with 4 entries for key {key_id}", town.primary.log())),
        what="the roster with the new key",
    )
    os.kill(town.backup.running.pid, signal.SIGHUP)
    wait_until(lambda: town.ask("zed") == "250 2.1.5", what="the new roster at the backup")

    fresh = str(tmp_path / "answered.json")
    run_command(town.backup.file, "pair", "offer", "--to", DOMAIN, "--rotate", "-o", fresh)
    os.kill(town.backup.running.pid, signal.SIGHUP)
    run_command(town.primary.file, "pair", "accept", "--rotate", fresh)
    town.primary.reload()
    town.primary.command("agreements", "block", f"alice@{DOMAIN}")
    wait_until(lambda: town.ask("alice") == "551 5.7.1", what="the block")

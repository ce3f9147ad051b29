"""`posthouse primary serve` for real: pairing, rosters over HTTPS with a pin, rotation, reload."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from fakes.http_server import Certificate
from fakes.https_stage import write_certificate
from peers.node import POSTHOUSE
from peers.primary import PrimaryNode, run_command
from peers.processes import PeerFailed, wait_until
from posthouse.config_pairs import load_primary_pairing
from posthouse.errors import PeerFailure
from posthouse.proto import signing
from posthouse.proto.roster_file import parse_head, verify_signature
from posthouse.transports.peers import HttpsPeer

CA = trustme.CA()
BACKUP = """
hostname = "mx2.example.net"
data_dir = "data"
[https]
listen = ["127.0.0.1:8447"]
[[domain]]
name = "example.com"
"""


class World:
    """A primary that runs and the configuration of a backup, paired by the four commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = Certificate(CA, "127.0.0.1")
        self.primary = PrimaryNode(
            folder / "primary", users=["alice", "bob"], certificate=self.certificate
        )
        self.backup = folder / "backup" / "posthouse.toml"
        self.backup.parent.mkdir()
        self.backup.write_text(BACKUP)
        self.theirs = self.backup.parent / "pairs" / "example.com.json"
        self._carried = 0

    def carry(self, *more: str, to_backup: bool = True) -> None:
        """One offer, made on one side and accepted on the other."""
        self._carried += 1
        file = self.folder / f"{self._carried}.json"
        there, party = (self.primary.file, "mx2.example.net")
        here = self.backup
        if not to_backup:
            there, here, party = self.backup, self.primary.file, "example.com"
        offer = [*more, *(["--pin"] if to_backup else [])]
        run_command(there, "pair", "offer", "--to", party, "-o", str(file), *offer)
        if more and to_backup:
            self.primary.reload()
        run_command(here, "pair", "accept", str(file), *more)

    def pair(self) -> None:
        self.carry()
        self.carry(to_backup=False)
        self.primary.add_backup("mx2.example.net")

    async def await_roster(self, accepts: Callable[[bytes], bool]) -> tuple[str, bytes]:
        """Fetch until the roster is as it should be: ETag and octets."""
        for _ in range(200):
            with contextlib.suppress(PeerFailure):
                _, etag, body = await self.fetch()
                if accepts(body):
                    return etag, body
            await asyncio.sleep(0.1)
        raise PeerFailed(f"no such roster\n{self.primary.log()[-2000:]}")

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[HttpsPeer]:
        """The primary as the backup's pairing file describes it."""
        pairing = load_primary_pairing(self.theirs)
        peer = HttpsPeer(
            pairing.party,
            pairing.base_url,
            token=pairing.token,
            spki_sha256=pairing.tls_spki_sha256,
            now_us=lambda: 0,
        )
        try:
            yield peer
        finally:
            await peer.close()

    async def fetch(self, query: str = "", etag: str = "") -> tuple[int, str, bytes]:
        """Status, ETag and body of one fetch."""
        sink = io.BytesIO()
        async with self.peer() as peer:
            response = await peer.download(
                f"v1/rosters/example.com{query}",
                sink,
                max_bytes=1 << 20,
                headers={"If-None-Match": etag} if etag else {},
            )
        return response.status, response.etag, sink.getvalue()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.pair()
    with world.primary:
        world.primary.wait_log("serial")
        yield world


def key_id(body: bytes) -> str:
    return parse_head(body).header.digest.key_id


def count(body: bytes) -> int:
    """Entries, postmaster included."""
    return parse_head(body).header.body.count


async def test_a_roster_is_fetched_with_a_pin(world: World) -> None:
    """It is the published file, signed by the paired key; asked again it is not modified."""
    pairing = load_primary_pairing(world.theirs)
    assert pairing.tls_spki_sha256 == world.certificate.pin
    status, etag, body = await world.fetch()
    assert status == 200
    assert verify_signature(parse_head(body), pairing.public_key)
    assert etag == f'"{parse_head(body).header.serial}"'
    assert await world.fetch(etag=etag) == (304, etag, b"")


async def test_changes_come_as_a_delta(world: World) -> None:
    """With `since` only what changed is sent."""
    crowd = ["alice", "bob", *(f"user{number}" for number in range(500))]
    world.primary.set_users(crowd)
    before, whole = await world.await_roster(lambda body: count(body) == 503)
    world.primary.set_users([*crowd[1:], "carol", "dora"])
    after, _ = await world.await_roster(lambda body: count(body) == 504)
    assert after != before
    serial = before.strip('"')
    status, etag, body = await world.fetch(f"?since={serial}", before)
    assert (status, etag) == (200, after)
    assert body.startswith(b"posthouse-roster-delta 1\n")
    assert len(body) < len(whole) - 16 * 490


async def test_strangers_hear_nothing(world: World) -> None:
    """Another token is a 401, another domain a 404, another certificate gets no token at all."""
    pairing = load_primary_pairing(world.theirs)
    stranger = HttpsPeer(
        "example.com",
        pairing.base_url,
        token="guessed",
        spki_sha256=pairing.tls_spki_sha256,
        now_us=lambda: 0,
    )
    with pytest.raises(PeerFailure) as caught:
        await stranger.get("v1/rosters/example.com")
    assert caught.value.status == 401
    await stranger.close()
    async with world.peer() as peer:
        with pytest.raises(PeerFailure) as caught:
            await peer.get("v1/rosters/example.org")
        assert caught.value.status == 404


async def test_rotation_has_no_gap(world: World) -> None:
    """Old and new token are good until the new one is shown, across a restart; then the old is void."""
    old = load_primary_pairing(world.theirs)
    _, _, before = await world.fetch()
    world.carry("--rotate")
    new = load_primary_pairing(world.theirs)
    assert new.roster_keys == (new.roster_key, old.roster_key)

    async def try_old() -> int:
        peer = HttpsPeer(
            "example.com",
            old.base_url,
            token=old.token,
            spki_sha256=old.tls_spki_sha256,
            now_us=lambda: 0,
        )
        try:
            return (await peer.get("v1/rosters/example.com")).status
        except PeerFailure as failure:
            return failure.status
        finally:
            await peer.close()

    assert await try_old() == 200
    status, _, body = await world.fetch()
    assert status == 200
    assert key_id(body) == signing.key_id(new.roster_key) != key_id(before)
    assert await try_old() == 401
    world.primary.stop()
    world.primary.start()
    assert await try_old() == 401
    assert (await world.fetch())[0] == 200


async def test_an_agreement_is_granted(world: World) -> None:
    """A recipe for a mailbox is granted and completed; one for nobody is told so."""
    document = {
        "forwarder_id": "mx2.example.net",
        "category": "backup MX",
        "policy_negotiation_url": "http://127.0.0.1:8447/v1/policy",
        "recipes": [
            {
                "recipe_id": f"r-{name}",
                "recipe_key": f"key-of-{name}-0123456789abcdef0123456789abcdef",
                "name": "Backup MX",
                "recipients": [f"{name}@example.com"],
                "evidence": {"seen_at": "2026-11-23T20:00:00Z"},
            }
            for name in ("alice", "nobody")
        ],
    }
    async with world.peer() as peer:
        answer = await peer.post("v1/agreements", json.dumps(document).encode())
        granted, unknown = json.loads(answer.body)["results"]
        assert unknown["status"] == "no_such_user"
        assert granted["status"] == "granted"
        assert granted["completion_url"] == world.primary.base_url + "v1/completion"
        completion = {
            "forwarder_id": "mx2.example.net",
            "agreement_id": granted["agreement_id"],
            "password": granted["password"],
            "new_password": "correct horse battery staple 42",
        }
        done = await peer.post(granted["completion_url"], json.dumps(completion).encode())
        assert done.status == 204
    for password, verdict in (("correct horse battery staple 42", b"OK"), ("wrong", b"FAIL")):
        said = await ask_sasl(world.primary.sasl_port, granted["agreement_id"], password)
        assert said.split(b"\t")[0] == verdict


async def ask_sasl(port: int, user: str, password: str) -> bytes:
    """What Postfix would hear of a login (Dovecot's authentication protocol)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        response = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        writer.write(b"VERSION\t1\t1\nCPID\t1\n")
        while await reader.readline() != b"DONE\n":
            pass
        writer.write(f"AUTH\t1\tPLAIN\tservice=smtp\tsecured\tresp={response}\n".encode())
        return await reader.readline()
    finally:
        writer.close()


async def test_status_tells_what_backups_came_for(world: World) -> None:
    """Rosters with their dates, who has which; while it runs, and after it ended."""
    assert (await world.fetch())[0] == 200

    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(world.primary.command("primary", "status", "--json"))
        return found

    wait_until(lambda: bool(status()["backups"][0]["fetched"]), what="the fetch", every=0.2)
    found = status()
    [domain], [backup] = found["domains"], found["backups"]
    [roster], [fetched] = domain["rosters"], backup["fetched"]
    assert found["running"]
    assert (domain["domain"], domain["problem"], roster["entries"]) == ("example.com", "", 3)
    assert roster["made_at"] < roster["not_after"]
    assert (backup["party"], backup["agreements_at"]) == ("mx2.example.net", None)
    assert (fetched["domain"], fetched["serial"]) == ("example.com", roster["serial"])
    async with world.peer() as peer:
        document = {
            "forwarder_id": "mx2.example.net",
            "category": "backup MX",
            "policy_negotiation_url": "http://127.0.0.1:8447/v1/policy",
            "recipes": [
                {
                    "recipe_id": "r-nobody",
                    "recipe_key": "key-of-nobody-0123456789abcdef0123456789abcdef",
                    "name": "Backup MX",
                    "recipients": ["nobody@example.com"],
                    "evidence": {"seen_at": "2026-11-23T20:00:00Z"},
                }
            ],
        }
        await peer.post("v1/agreements", json.dumps(document).encode())
    world.primary.stop()
    found = status()
    assert not found["running"]
    assert found["backups"][0]["fetched"] == [fetched]
    assert found["backups"][0]["agreements_at"] is not None
    text = world.primary.command("primary", "status")
    assert "primary serve does not run" in text
    assert f"has roster {roster['serial']} of example.com" in text


async def test_reload_and_end(world: World) -> None:
    """SIGHUP takes a new certificate; a broken file changes nothing; SIGTERM ends with 0."""
    second = Certificate(CA, "127.0.0.1")
    write_certificate(world.primary.directory, second)
    world.primary.reload()
    with pytest.raises(PeerFailure) as caught:
        await world.fetch()
    assert caught.value.stage == "tls"
    write_certificate(world.primary.directory, world.certificate)
    world.primary.reload()
    assert (await world.fetch())[0] == 200
    whole = world.primary.file.read_text()
    world.primary.file.write_text(whole + "nonsense = 1\n")
    os.kill(world.primary.running.pid, signal.SIGHUP)
    world.primary.wait_log("reload refused")
    assert (await world.fetch())[0] == 200
    assert world.primary.stop() == 0
    assert not (world.primary.directory / "data" / "run" / "primary.json").exists()


def test_one_process_a_directory(world: World) -> None:
    """A second one is told who has it."""
    done = subprocess.run(
        [str(POSTHOUSE), "primary", "serve", "-c", str(world.primary.file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69
    assert "primary serve uses" in done.stderr


def test_a_crash_is_survived(world: World) -> None:
    """The process that serves is started again when it is killed."""
    children = _children(world.primary.running.pid)
    os.kill(children[0], signal.SIGKILL)
    world.primary.wait_log("was killed by SIGKILL")
    wait_until(lambda: world.primary.log().count("serves") >= 2, what="the new process")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

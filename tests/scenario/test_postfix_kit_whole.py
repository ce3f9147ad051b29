"""The same with `posthouse primary serve` behind Postfix's questions, from pairing to the mailbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.agreement_secrets import FakeSecrets
from peers.postfix import Postfix
from peers.postfix_kit import Backup, SpfStandIn, make_primary
from peers.postgrey import Postgrey
from peers.primary import PrimaryNode, run_command
from posthouse.config_pairs import load_primary_pairing
from posthouse.interfaces.local_door import Place
from posthouse.mail.credentials import Credentials
from posthouse.transports.peers import HttpsPeer

pytestmark = pytest.mark.peers

FORWARDER = "mx2.example.net"
PASSWORD = "correct horse battery staple 42"
BACKUP = """
hostname = "mx2.example.net"
data_dir = "data"
[https]
listen = ["127.0.0.1:8447"]
[[domain]]
name = "example.com"
"""


@pytest.fixture
def postfix(tmp_path: Path) -> Iterator[Postfix]:
    """Configured by the document; not started."""
    made = make_primary(tmp_path, "alice", "postmaster")
    yield made
    made.remove()


@pytest.fixture
def serve(tmp_path: Path, postfix: Postfix) -> Iterator[PrimaryNode]:
    """Paired with a backup, answering at the sockets of the document."""
    sockets = postfix.queue_directory / "posthouse"
    node = PrimaryNode(
        tmp_path / "primary",
        users=["alice"],
        sections={
            "postfix": {
                "auth_socket": str(sockets / "auth"),
                "policy_listen": f"unix:{sockets}/policy",
            }
        },
    )
    backup = tmp_path / "backup" / "posthouse.toml"
    backup.parent.mkdir()
    backup.write_text(BACKUP)
    for offers, accepts, party in (
        (node.file, backup, FORWARDER),
        (backup, node.file, "example.com"),
    ):
        carried = str(tmp_path / f"for-{party}.json")
        run_command(offers, "pair", "offer", "--to", party, "-o", carried)
        run_command(accepts, "pair", "accept", carried)
    node.add_backup(FORWARDER)
    with node:
        node.wait_log("serial")
        yield node


async def post(pairing_file: Path, path: str, document: dict[str, object]) -> bytes:
    """What the primary answers to the backup."""
    pairing = load_primary_pairing(pairing_file)
    peer = HttpsPeer(
        pairing.party,
        pairing.base_url,
        token=pairing.token,
        spki_sha256=pairing.tls_spki_sha256,
        now_us=lambda: 0,
    )
    try:
        return (await peer.post(path, json.dumps(document).encode())).body
    finally:
        await peer.close()


async def negotiate(pairing_file: Path) -> tuple[str, str, str]:
    """Ask for an agreement for alice: its id, the one-time password, the URL for completion."""
    recipe = {
        "recipe_id": "r-alice",
        "recipe_key": "key-of-alice-0123456789abcdef0123456789abcdef",
        "name": "Backup MX",
        "recipients": ["alice@example.com"],
        "evidence": {"seen_at": "2026-11-23T20:00:00Z"},
    }
    answer = await post(
        pairing_file,
        "v1/agreements",
        {
            "forwarder_id": FORWARDER,
            "category": "backup MX",
            "policy_negotiation_url": "http://127.0.0.1:8447/v1/policy",
            "recipes": [recipe],
        },
    )
    (granted,) = json.loads(answer)["results"]
    return granted["agreement_id"], granted["password"], granted["completion_url"]


async def complete(pairing_file: Path, agreement_id: str, password: str, url: str) -> None:
    """Set our password."""
    document: dict[str, object] = {
        "forwarder_id": FORWARDER,
        "agreement_id": agreement_id,
        "password": password,
        "new_password": PASSWORD,
    }
    assert await post(pairing_file, url, document) == b""


async def test_from_pairing_to_the_mailbox(
    tmp_path: Path, postfix: Postfix, serve: PrimaryNode
) -> None:
    """Before completion 535 and a stranger's treatment; after it mail passes at once."""
    pairing_file = tmp_path / "backup" / "pairs" / "example.com.json"
    agreement_id, one_time, url = await negotiate(pairing_file)
    spf = SpfStandIn()
    await spf.door.open(Place(path=postfix.queue_directory / "private" / "policyd-spf"))
    secrets = FakeSecrets()

    def know(password: str) -> None:
        secrets.table["alice@example.com"] = Credentials(
            agreement_id=agreement_id, password=password, forwarder_id=FORWARDER
        )

    socket = postfix.queue_directory / "postgrey" / "socket"
    with Postgrey(tmp_path, delay=300, socket=socket), postfix:
        for password, reply in ((one_time, "550 5.7.23 "), (PASSWORD, "")):
            know(password)
            backup = Backup(postfix.port, secrets)
            await backup.accept("alice")
            backup.relay.start()
            if reply:
                await backup.settled(reply)
                assert [agreement for agreement, _ in secrets.reported] == [agreement_id]
                assert "535 5.7.8" in secrets.reported[0][1]
                await complete(pairing_file, agreement_id, one_time, url)
            else:
                (message,) = await asyncio.to_thread(postfix.wait_messages, 1)
                await backup.settled()
                assert message.recipient == "alice@example.com"
                assert "ESMTPSA" in message.received
            await backup.close()
        assert len(spf.asked) == 1  # of the first attempt
        assert f"sasl_username={agreement_id}" in postfix.log()
        assert "under agreement" in serve.log()
    await spf.door.close()

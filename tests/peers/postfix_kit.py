"""What stands around a Postfix that is set up by docs/postfix-kit.md, for scenario tests."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trustme

from fakes.agreement_secrets import FakeSecrets
from fakes.memory_spool import MemorySpool
from fakes.resolver import FakeResolver
from peers.postfix import Postfix
from posthouse.domain.nexthop import HostPort
from posthouse.interfaces.local_door import Line, LocalDoor
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import Selection
from posthouse.proto.postfix_policy import PolicyReader, format_answer
from posthouse.services.relay import Relay
from posthouse.services.relay_settings import RelaySettings, RouteSettings
from posthouse.transports.smtp_out import OutSettings, SmtpConnector

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "postfix-kit.md"


def read_main_cf() -> dict[str, str]:
    """The parameters of the document's main.cf block, continuation lines joined as Postfix does."""
    (block,) = re.findall(r"```main\.cf\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    parameters: dict[str, str] = {}
    for line in lines:
        if line[0].isspace():
            name = next(reversed(parameters))
            parameters[name] = f"{parameters[name]} {line.strip()}".strip()
        else:
            name, _, value = line.partition("=")
            parameters[name.strip()] = value.strip()
    return parameters


def make_primary(directory: Path, *users: str) -> Postfix:
    """A primary configured by the document, not started; directory: for its certificate."""
    issued = trustme.CA().issue_cert("mail.example.com")
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    made = Postfix.primary(
        users=users, certificate=chain, private_key=key, parameters=read_main_cf()
    )
    for name in ("posthouse", "postgrey"):
        (made.queue_directory / name).mkdir(mode=0o755)
    return made


class SpfStandIn:
    """Refuses every recipient it is asked about, except of clients that greet as "friend"."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, str]] = []
        self.door = LocalDoor("spf", self._serve)

    async def _serve(self, line: Line) -> None:
        reader = PolicyReader()
        while data := await line.read():
            for question in reader.feed(data):
                self.asked.append(question)
                good = question["helo_name"].startswith("friend")
                await line.write(format_answer("DUNNO" if good else "550 5.7.23 SPF fail"))


class Backup:
    """Our relay, its mail in memory."""

    def __init__(self, port: int, secrets: FakeSecrets) -> None:
        self.spool = MemorySpool(0, lambda: 1_700_000_000_000_000)
        self.out = SmtpConnector(OutSettings(helo_name="mx2.example.net"), self.spool.open_body)
        self.relay = Relay(
            spool=self.spool,
            connector=self.out,
            resolver=FakeResolver(),
            routes={"example.com": RouteSettings(hops=(HostPort("127.0.0.1", port),))},
            settings=RelaySettings(own_names=frozenset({"mx2.example.net"}), concurrency=1),
            clock_us=lambda: 1_700_000_000_000_000,
            dice=random.Random(7),
            secrets=secrets,
        )

    async def accept(self, user: str) -> None:
        """Take one message for a user, as reception does."""
        incoming = self.spool.begin()
        incoming.write(f"Subject: to {user}\r\n\r\nx\r\n".encode())
        address = f"{user}@example.com"
        envelope = Envelope(
            sender="from@client.example",
            recipients=(Recipient(address=address, domain="example.com"),),
        )
        await self.spool.commit(
            incoming, envelope=envelope, client=Client(address="192.0.2.200", port=4711)
        )

    async def waiting(self) -> dict[str, str]:
        """What is left: address → the primary's last reply."""
        left = await self.spool.list_messages(Selection(), after=None, limit=100)
        return {r.address: r.reply for message in left for r in message.recipients}

    async def settled(self, *replies: str) -> None:
        """Wait until exactly these replies (in part) are what keeps mail here."""
        for _ in range(2000):
            found = sorted((await self.waiting()).values())
            if len(found) == len(replies) and all(
                part in reply for part, reply in zip(sorted(replies), found, strict=True)
            ):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(await self.waiting())

    async def close(self) -> None:
        await self.relay.stop(5)
        await self.out.close()
        await self.spool.close()

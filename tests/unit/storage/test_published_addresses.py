"""Who exists, by the primary's own rosters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.source import ListSource
from posthouse.mail.roster import RosterLimits, RosterPolicy, RosterRule
from posthouse.ports_publish import DigestOrder, RosterOrder
from posthouse.storage.published_addresses import PublishedAddresses
from posthouse.storage.roster_maker import RosterMaker, Signer

OLD, NEW = b"o" * 32, b"n" * 32
DOMAIN = "example.com"


class Shop:
    """A maker of rosters, and what answers from them."""

    def __init__(self, directory: Path) -> None:
        self.now_s = 1_800_000_000
        self.directory = directory
        self.maker = RosterMaker(
            directory,
            Signer(party=DOMAIN, private_key=b"s" * 32),
            now_s=lambda: self.now_s,
            cores=1,
        )
        self.addresses = PublishedAddresses(directory, {DOMAIN: (OLD, NEW)})

    def make(
        self, *names: str, keys: tuple[bytes, ...] = (OLD,), scheme: str = "hmac-sha256"
    ) -> None:
        self.now_s += 10
        self.maker.make(
            RosterOrder(
                domain=DOMAIN,
                sources=(ListSource([f"{name}@{DOMAIN}" for name in names]),),
                keys=keys,
                rules=(RosterRule(match="trap[0-9]", action="trap"),),
                digest=DigestOrder(scheme=scheme, n=1024),
                limits=RosterLimits(max_message_bytes=1, smtputf8=True, eight_bit_mime=True),
                policy=RosterPolicy(blocking="allowed", when_stale="defer"),
                max_loss=100,
            )
        )

    async def find(self, local: str) -> tuple[bool | None, str]:
        found = await self.addresses.find(DOMAIN, local)
        return found.exists, found.mailbox


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.addresses.close()


@pytest.mark.parametrize("scheme", ["hmac-sha256", "scrypt"])
async def test_who_is_there(shop: Shop, scheme: str) -> None:
    """A mailbox is named by the text whose digest is there, however it is spelled."""
    shop.make("alice", "ops+night", scheme=scheme)
    assert await shop.find("Alice") == (True, "alice@example.com")
    assert await shop.find("alice+news") == (True, "alice@example.com")
    assert await shop.find("ops+night") == (True, "ops+night@example.com")
    assert (await shop.find("ops"))[0] is False
    assert (await shop.find("nobody"))[0] is False


async def test_what_has_no_mailbox(shop: Shop) -> None:
    """Postmaster, a trap and what is only a rule make no agreement."""
    shop.make("alice", "trap7")
    assert (await shop.find("postmaster"))[0] is False
    assert (await shop.find("trap7"))[0] is False


async def test_the_newest_roster_counts(shop: Shop) -> None:
    """Also when it was made with another key than the one before."""
    shop.make("alice")
    assert (await shop.find("bob"))[0] is False
    shop.make("alice", "bob", keys=(NEW,))
    assert await shop.find("bob") == (True, "bob@example.com")
    shop.make("alice", "carol", keys=(OLD,))
    assert (await shop.find("bob"))[0] is False


async def test_nobody_can_tell(shop: Shop) -> None:
    """Without a roster, with a damaged one, or for another domain."""
    assert await shop.find("alice") == (None, "")
    assert (await shop.addresses.find("example.org", "alice")).exists is None
    shop.make("alice")
    for path in shop.directory.rglob("*.roster"):
        path.write_bytes(path.read_bytes()[:100])
    assert (await shop.find("alice"))[0] is None


async def test_keys_change(shop: Shop) -> None:
    """A reload brings the keys of other pairings."""
    shop.make("alice", keys=(NEW,))
    shop.addresses.set_keys({DOMAIN: (OLD,)})
    assert (await shop.find("alice"))[0] is None
    shop.addresses.set_keys({DOMAIN: (NEW, OLD)})
    assert (await shop.find("alice"))[0] is True

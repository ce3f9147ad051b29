"""Where an address is stored, asked through a chain of backups that grant to each other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from fakes.books import MemoryForwarderBook, MemoryGranterBook
from posthouse.domain.agreement import RosterFacts, Standing, State
from posthouse.domain.recipients import Fold
from posthouse.errors import PeerFailure
from posthouse.mail.recipes import Holder, PolicyRequest, PolicySettings, Refusal
from posthouse.ports_agreements import Existence, ForwarderEntry, Grant, GrantState
from posthouse.proto import agreement_wire as wire
from posthouse.services.granter import GranterSettings
from posthouse.services.granter_callbacks import GranterCallbacks
from posthouse.services.policy import PolicyDesk

ALICE = "alice@example.com"


class _NoRoster:
    def facts(self, domain: str) -> RosterFacts | None:
        return None

    def fold(self, domain: str) -> Fold | None:
        return None

    async def testify(self, domain: str, local: str) -> bool | None:
        return None


class _Everybody:
    async def find(self, domain: str, local: str) -> Existence:
        return Existence(exists=True, mailbox=f"{local}@{domain}")


@dataclasses.dataclass
class _Node:
    forwarder: MemoryForwarderBook
    granter: MemoryGranterBook
    callbacks: GranterCallbacks
    desk: PolicyDesk
    up: bool = True


class Chain:
    """Parties and who granted to whom; every question crosses the wire text."""

    def __init__(self, *grants: tuple[str, str]) -> None:
        self.nodes: dict[str, _Node] = {}
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        for granter, forwarder in grants:
            self._grant(granter, forwarder)

    def _node(self, party: str) -> _Node:
        if party not in self.nodes:
            forwarder, granter = MemoryForwarderBook(), MemoryGranterBook()
            callbacks = GranterCallbacks(
                GranterSettings(party=party, completion_url="", forwarders={}),
                book=granter,
                addresses=_Everybody(),
                calls=_Caller(self, party),
                mint=lambda n: "0" * n,
                clock_us=lambda: 1,
            )
            desk = PolicyDesk(
                host=f"host.{party}",
                book=forwarder,
                rosters=_NoRoster(),
                below=callbacks,
                preference=lambda _domain: 20,
                changed=lambda: None,
                clock_us=lambda: 1,
            )
            self.nodes[party] = _Node(forwarder, granter, callbacks, desk)
        return self.nodes[party]

    def _grant(self, granter: str, forwarder: str) -> None:
        recipe = f"r-{granter}-{forwarder}".replace(".", "-")
        key = recipe.ljust(32, "k")
        self._node(granter).granter.grants[f"a-{forwarder}"] = Grant(
            forwarder_id=forwarder,
            recipe_id=recipe,
            recipe_key=key,
            domain="example.com",
            mailbox=ALICE,
            address=ALICE,
            name="",
            policy_url="",
            agreement_id=f"a-{forwarder}".replace(".", "-"),
            state=GrantState.AGREED,
        )
        book = self._node(forwarder).forwarder
        canonical = ALICE if ALICE not in book.entries else f"{granter}/{ALICE}"
        book.entries[canonical] = ForwarderEntry(
            canonical=ALICE,
            domain="example.com",
            address=ALICE,
            standing=Standing(State.AGREED),
            granter=granter,
            forwarder_id=forwarder,
            recipe_id=recipe,
            recipe_key=key,
            agreement_id=f"a-{forwarder}".replace(".", "-"),
            seen_us=3_600_000_000,
        )

    async def find(self, party: str) -> Sequence[Holder]:
        return await self.nodes[party].callbacks.find_holders(ALICE, "user")


class _Caller:
    def __init__(self, chain: Chain, me: str) -> None:
        self._chain, self._me = chain, me

    async def negotiate(
        self, party: str, url: str, document: PolicyRequest
    ) -> PolicySettings | Refusal:
        read = wire.decode_policy(wire.encode_policy(document))
        self._chain.asked.append((party, read.visited))
        node = self._chain.nodes[party]
        if not node.up:
            raise PeerFailure("no route", stage="timeout")
        answer = await node.desk.negotiate(self._me, read)
        if isinstance(answer, Refusal):
            return answer
        return wire.decode_settings(wire.encode_settings(answer))


async def test_through_a_backup_that_grants() -> None:
    """The primary hears of the backup at 20 first, then of the one at 30 behind it."""
    chain = Chain(("primary", "mx20"), ("mx20", "mx30"))
    holders = await chain.find("primary")
    assert [holder.party for holder in holders] == ["mx20", "mx30"]
    assert holders[1].host == "host.mx30"
    assert chain.asked == [("mx20", ("primary",)), ("mx30", ("primary", "mx20"))]


async def test_an_unreachable_one_is_listed() -> None:
    """Whoever cannot be asked is named with the error; those before it are told all the same."""
    chain = Chain(("primary", "mx20"), ("mx20", "mx30"), ("mx20", "mx40"))
    chain.nodes["mx30"].up = False
    holders = {holder.party: holder.error for holder in await chain.find("primary")}
    assert holders == {"mx20": "", "mx30": "timeout", "mx40": ""}


async def test_circles_end() -> None:
    """Two backups that grant to each other are each listed once."""
    chain = Chain(("primary", "mx20"), ("mx20", "mx30"), ("mx30", "mx20"))
    holders = await chain.find("primary")
    assert [holder.party for holder in holders] == ["mx20", "mx30"]


async def test_eight_hops_and_no_more() -> None:
    """A ninth party is not reached."""
    names = ["primary", *(f"mx{n}" for n in range(1, 13))]
    chain = Chain(*itertools.pairwise(names))
    holders = await chain.find("primary")
    assert [holder.party for holder in holders] == names[1:8]
    assert max(len(visited) for _, visited in chain.asked) == 8


async def test_own_party_in_visited() -> None:
    """Who finds itself among those asked answers with an empty list."""
    chain = Chain(("primary", "mx20"))
    entry = chain.nodes["mx20"].forwarder.entries[ALICE]
    for visited in (("mx20",), tuple(f"p{n}" for n in range(8))):
        answer = await chain.nodes["mx20"].desk.negotiate(
            "primary",
            PolicyRequest(
                recipe_id=entry.recipe_id,
                recipe_key=entry.recipe_key,
                agreement_id=None,
                actor="granter",
                get=("servers",),
                visited=visited,
            ),
        )
        assert answer == PolicySettings(servers=())

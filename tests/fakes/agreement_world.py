"""A backup and its primary in one process: both books, both services, and a wire between them.

Every touch of a book or of the wire is a *point*. A world can be told to kill
one side at a point: from then on whatever that side does fails, until it is
restarted on the book as it was then.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

from fakes.books import MemoryForwarderBook, MemoryGranterBook, MemoryReports
from posthouse.domain.agreement import RosterFacts, State
from posthouse.domain.agreement_passwords import hash_password
from posthouse.domain.recipients import Fold, fold
from posthouse.errors import PeerFailure, StorageBroken
from posthouse.mail.recipes import (
    AgreementRequest,
    Completion,
    PolicyRequest,
    PolicySettings,
    RecipeResult,
    Refusal,
)
from posthouse.ports_agreements import (
    Existence,
    ForwarderEntry,
    Grant,
    GrantState,
    HoldersBelow,
    Sighting,
)
from posthouse.proto import agreement_wire as wire
from posthouse.proto.base_url import lies_under
from posthouse.services.forwarder import Forwarder
from posthouse.services.forwarder_talk import Link
from posthouse.services.granter import ForwarderTerms, Granter, GranterSettings
from posthouse.services.granter_callbacks import GranterCallbacks
from posthouse.services.policy import PolicyDesk

PRIMARY, BACKUP, DOMAIN = "example.com", "mx2.example.net", "example.com"
BASE = {PRIMARY: "https://mail.example.com:8447/", BACKUP: "https://mx2.example.net:8447/"}
SECOND = 1_000_000
START_US = 1_795_000_000 * SECOND
Side = Literal["forwarder", "granter"]
T = TypeVar("T")


class Cuts:
    """Counts points; kills one side at one of them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {"forwarder": 0, "granter": 0}
        self.kill_at: dict[str, int] = {}
        self.dead: set[str] = set()

    def point(self, side: Side) -> None:
        if side in self.dead:
            raise StorageBroken(f"the {side} is dead")
        self.counts[side] += 1
        if self.counts[side] == self.kill_at.get(side):
            self.dead.add(side)
            raise StorageBroken(f"the {side} dies")

    def revive(self) -> None:
        self.dead.clear()
        self.kill_at.clear()


class CutBook:
    """A book whose every use is two points: before it, and after it was written."""

    def __init__(self, book: Any, cuts: Cuts, side: Side) -> None:
        self._book, self._cuts, self._side = book, cuts, side

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._book, name)

        async def cut(*args: Any, **kwargs: Any) -> Any:
            self._cuts.point(self._side)
            result = await method(*args, **kwargs)
            self._cuts.point(self._side)
            return result

        return cut


class Rosters:
    """A roster as sets of local parts. None of `facts`: the domain has no roster."""

    def __init__(self, vouched: Sequence[str] = ()) -> None:
        self.vouched = set(vouched)
        self.now: RosterFacts | None = RosterFacts(serial=10, issued_us=START_US, fresh=True)
        self.silent: set[str] = set()

    def publish(self, vouched: Sequence[str], *, issued_us: int, blocking: bool = True) -> None:
        self.vouched = set(vouched)
        serial = 1 if self.now is None else self.now.serial + 1
        self.now = RosterFacts(
            serial=serial, issued_us=issued_us, fresh=True, blocking_allowed=blocking
        )

    def facts(self, domain: str) -> RosterFacts | None:
        return self.now

    def fold(self, domain: str) -> Fold | None:
        return None if self.now is None else Fold()

    async def testify(self, domain: str, local: str) -> bool | None:
        if self.now is None or local in self.silent:
            return None
        return local in self.vouched or fold(local, Fold(), cut=True) in self.vouched


class Mailboxes:
    """Who exists at the primary; None of `exist`: nobody can tell now."""

    def __init__(self, *locals_: str) -> None:
        self.exist: set[str] | None = set(locals_)

    async def find(self, domain: str, local: str) -> Existence:
        text = fold(local, Fold(), cut=True)
        exists = None if self.exist is None else text in self.exist
        return Existence(exists=exists, mailbox=f"{text}@{domain}", user_id=text)


class Held:
    """Whose mail was put on hold."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def hold(self, domain: str, addresses: Sequence[str]) -> int:
        self.addresses += addresses
        return len(addresses)


class Alerts:
    """What stands."""

    def __init__(self) -> None:
        self.standing: dict[tuple[str, str], str] = {}

    def raise_(
        self, kind: str, subject: str, text: str, what_to_do: str, *, since_us: int = 0
    ) -> None:
        self.standing[kind, subject] = text

    def clear(self, kind: str, subject: str) -> None:
        self.standing.pop((kind, subject), None)


class World:
    """See the module. `lost_replies`: how many answers of the granter get lost from now on."""

    def __init__(
        self, *mailboxes: str, ask: bool = False, below: HoldersBelow | None = None
    ) -> None:
        self.now_us = START_US
        self.cuts = Cuts()
        self.minted = 0
        self.forwarder_book, self.granter_book = MemoryForwarderBook(), MemoryGranterBook()
        self.reports, self.held, self.alerts = MemoryReports(), Held(), Alerts()
        self.mailboxes = Mailboxes(*mailboxes)
        self.rosters = Rosters(mailboxes)
        self.up = True
        self.lost_replies = 0
        self.requests: list[AgreementRequest] = []
        self.completions: list[Completion] = []
        self.settings = GranterSettings(
            party=PRIMARY,
            completion_url=BASE[PRIMARY] + "v1/completion",
            forwarders={
                BACKUP: ForwarderTerms(
                    domains=frozenset({DOMAIN}), policy_base=BASE[BACKUP], ask=ask
                )
            },
        )
        self._below = below
        self.restart()

    def mint(self, octets: int) -> str:
        self.minted += 1
        return f"{self.minted:x}f9b17c3e5a2d".zfill(12).ljust(2 * octets, "0")[: 2 * octets]

    def clock_us(self) -> int:
        return self.now_us

    def restart(self) -> None:
        """Both sides start on what their books hold."""
        self.cuts.revive()
        forwarder_book: Any = CutBook(self.forwarder_book, self.cuts, "forwarder")
        granter_book: Any = CutBook(self.granter_book, self.cuts, "granter")
        self.granter = Granter(
            self.settings,
            book=granter_book,
            addresses=self.mailboxes,
            lies_under=lies_under,
            mint=self.mint,
            clock_us=self.clock_us,
        )
        self.callbacks = GranterCallbacks(
            self.settings,
            book=granter_book,
            addresses=self.mailboxes,
            calls=self,
            mint=self.mint,
            clock_us=self.clock_us,
        )
        self.link = Link(
            party=PRIMARY,
            forwarder_id=BACKUP,
            policy_url=BASE[BACKUP] + "v1/policy",
            calls=self,
        )
        self.forwarder = Forwarder(
            book=forwarder_book,
            reports=self.reports,
            rosters=self.rosters,
            links=lambda _domain: (self.link,),
            holder=self.held,
            alerts=self.alerts,
            mint=self.mint,
            clock_us=self.clock_us,
        )
        self.forwarder.set_domains([DOMAIN])
        self.policy = PolicyDesk(
            host=BACKUP,
            book=forwarder_book,
            rosters=self.rosters,
            below=self._below,
            preference=lambda _domain: 20,
            changed=self.forwarder.ring,
            clock_us=self.clock_us,
        )

    # ------------------------------------------------------------------ the wire

    async def request(self, document: AgreementRequest) -> Sequence[RecipeResult] | Refusal:
        self.requests.append(document)
        read = wire.decode_request(wire.encode_request(document))
        answer = await self._cross(lambda: self.granter.request(BACKUP, read))
        if isinstance(answer, Refusal):
            return answer
        return wire.decode_results(wire.encode_results(tuple(answer)), document)

    async def complete(self, url: str, document: Completion) -> Refusal | None:
        if not lies_under(BASE[PRIMARY], url):
            raise PeerFailure("elsewhere", stage="url")
        self.completions.append(document)
        read = wire.decode_completion(wire.encode_completion(document))
        return await self._cross(lambda: self.granter.complete(BACKUP, read))

    async def negotiate(
        self, party: str, url: str, document: PolicyRequest
    ) -> PolicySettings | Refusal:
        read = wire.decode_policy(wire.encode_policy(document))
        try:
            answer = await self.policy.negotiate(PRIMARY, read)
        except StorageBroken as error:
            raise PeerFailure("503", stage="status", status=503) from error
        if isinstance(answer, Refusal):
            return answer
        return wire.decode_settings(wire.encode_settings(answer))

    async def _cross(self, work: Callable[[], Awaitable[T]]) -> T:
        """There and back; a dead granter answers 503, a dead forwarder hears nothing."""
        self.cuts.point("forwarder")
        if not self.up:
            raise PeerFailure("connection refused", stage="connect")
        try:
            answer = await work()
        except StorageBroken as error:
            raise PeerFailure("503", stage="status", status=503) from error
        self.cuts.point("forwarder")
        if self.lost_replies:
            self.lost_replies -= 1
            raise PeerFailure("the connection broke", stage="protocol")
        return answer

    # ------------------------------------------------------------------ what tests do

    def arrive(self, local: str, *, serial: int | None = None, messages: int = 1) -> None:
        """A message for somebody was accepted (or, without a roster, somebody asked)."""
        facts = self.rosters.now
        self.reports.put(
            Sighting(
                canonical=f"{fold(local, Fold(), cut=facts is not None)}@{DOMAIN}",
                domain=DOMAIN,
                address=f"{local}@{DOMAIN}",
                serial=serial if serial is not None else (facts.serial if facts else 0),
                at_us=self.now_us,
                messages=messages,
                bytes=100 * messages,
            ),
            name=f"report-{self.now_us}-{local}-{len(self.reports.waiting)}-{self.minted}",
        )

    async def step(self, *, seconds: int = 0) -> None:
        """One round of the forwarder after some time."""
        self.now_us += seconds * SECOND
        await self.forwarder.step()

    async def settle(self, *, rounds: int = 12, seconds: int = 400) -> None:
        """Rounds until nothing is due soon."""
        for _ in range(rounds):
            await self.step(seconds=seconds)

    def entry(self, local: str = "alice") -> ForwarderEntry:
        return self.forwarder_book.entries[f"{local}@{DOMAIN}"]

    def live_grants(self, local: str = "alice") -> list[Grant]:
        return [
            grant
            for grant in self.granter_book.grants.values()
            if grant.mailbox == f"{local}@{DOMAIN}"
            and grant.state not in (GrantState.ENDED, GrantState.ENDING)
        ]

    def copy_books(self) -> tuple[Any, Any]:
        return copy.deepcopy(self.forwarder_book), copy.deepcopy(self.granter_book)

    def assert_agreed(self, local: str = "alice") -> None:
        """Both sides are in the same state, with the same password, and nothing half done."""
        entry, (grant,) = self.entry(local), self.live_grants(local)
        assert entry.standing.behind is State.AGREED, entry.standing
        assert (entry.recipe_id, entry.recipe_key) == (grant.recipe_id, grant.recipe_key)
        assert entry.agreement_id == grant.agreement_id
        assert grant.state is GrantState.AGREED
        assert hash_password(grant.agreement_id, entry.password) == grant.password
        assert not entry.one_time_password
        assert not entry.new_password
        assert not entry.login_refused
        assert not grant.one_time

"""The forwarder: negotiates the agreements of a backup (PROTOCOL.md §3). One per node.

Runs in the control process. It takes what the workers learned, asks the
primary, or the first more preferred secondary that answers, completes what is
granted, hears every fresh roster about everybody on record, and puts the
result before the workers. It probes by simply trying, with a back-off for each
granter; `reached` says that one can be tried now. Nothing here holds mail up:
a vouched address is accepted whatever state its agreement is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from posthouse import observe
from posthouse.domain.agreement import REFUSED_AGAIN_US, RosterFacts, State
from posthouse.domain.allowance import Allowance
from posthouse.domain.instants import left_us
from posthouse.domain.recipients import Fold
from posthouse.errors import PosthouseError
from posthouse.log_sink import clean
from posthouse.ports_agreements import (
    ForwarderBook,
    ForwarderEntry,
    QueueHolder,
    Reports,
    RosterWitness,
    Sighting,
)
from posthouse.ports_alerts import AlertSink
from posthouse.services import forwarder_moves as moves
from posthouse.services.forwarder_talk import MINUTE_US, NEW_A_MINUTE, Link, Talk

LOOK_EVERY_SECONDS: Final = 1.0
MAX_REPORTS: Final = 200
BATCH: Final = 1_000
# How many addresses a new roster is asked about before others get their turn.
ROSTER_BATCH: Final = 500
# Conversations at the same time; a slow granter holds up its own domains only.
MAX_TALKS: Final = 8
HOLDS: Final = 100
# Wishes for addresses of one domain that nobody vouches for, until its granter answers: a flood of
# guesses in an outage ends here.
MAX_WISHES: Final = 20_000
FORGET_EVERY_US: Final = 60 * MINUTE_US
LONGEST_WAIT_US: Final = REFUSED_AGAIN_US + FORGET_EVERY_US
"""No entry is put off for longer."""
# No roster is valid for longer (PROTOCOL.md §2): none from before the end still vouches then.
ENDED_FOR_US: Final = 90 * 24 * 60 * MINUTE_US
REFUSED: Final = "agreements-refused"
DISPUTED: Final = "agreements-disputed"

Links = Callable[[str], Sequence[Link]]
Wait = Callable[[float], Awaitable[object]]


class Forwarder:
    """See the module. `run` keeps it going; `step` is one round, for tests and commands."""

    def __init__(
        self,
        *,
        book: ForwarderBook,
        reports: Reports,
        rosters: RosterWitness,
        links: Links,
        holder: QueueHolder,
        alerts: AlertSink,
        mint: Callable[[int], str],
        clock_us: Callable[[], int],
        wait: Wait | None = None,
    ) -> None:
        """links: the granters of a domain, the most preferred first; none: not paired."""
        self._book = book
        self._reports = reports
        self._rosters = rosters
        self._links = links
        self._holder = holder
        self._alerts = alerts
        self._mint = mint
        self._clock_us = clock_us
        self._bell = asyncio.Event()
        self._wait = wait or self._wait_for_bell
        self._fresh: dict[str, Allowance] = {}
        self._wanted: dict[str, Allowance] = {}
        self._talks: dict[str, asyncio.Task[None]] = {}
        self._disputed: dict[str, set[str]] = {}
        self._crowded = False  # a domain waits for a talk to end
        self._told = ""  # what is wrong with the book
        self._folds: dict[str, Fold] | None = None
        self._domains: tuple[str, ...] = ()
        self._wishes: dict[str, int] = {}
        self._forget_us = 0

    def set_domains(self, domains: Sequence[str]) -> None:
        """Serve these domains: those that are paired."""
        self._domains = tuple(domains)

    def reached(self, domain: str) -> None:
        """The primary, or a more preferred secondary, of the domain answers: try now."""
        for link in self._links(domain):
            link.rest_until_us = 0
        self._bell.set()

    def ring(self) -> None:
        """Something is due."""
        self._bell.set()

    async def run(self) -> None:
        """Go on for ever. A failure of our own is told and tried again."""
        try:
            while True:
                await self._wait(LOOK_EVERY_SECONDS)
                try:
                    await self._begin_round()
                    self._told = ""
                except Exception as error:  # a supervised task: the next round goes on
                    if str(error) != self._told:  # once, not every second
                        observe.trouble("agreements", "the book cannot be kept", error)
                    self._told = str(error)
        finally:
            await self.close()

    async def step(self) -> None:
        """One round to its end: everything that is due now has been tried once."""
        await self._begin_round()
        while self._talks:
            await asyncio.gather(*self._talks.values())
            await asyncio.sleep(0)
        await self._hold()
        await self._book.publish()

    async def close(self) -> None:
        """Break off what is under way; it is taken up where it was left."""
        talks = list(self._talks.values())
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    # ------------------------------------------------------------------ one round

    async def _begin_round(self) -> None:
        await self._take_reports()
        await self._hear_rosters()
        await self._forget_ended()
        now_us = self._clock_us()
        self._crowded = False
        for domain, due_us in (await self._book.next_due()).items():
            link = self._choose(domain, now_us)
            if due_us > now_us or domain in self._talks or link is None:
                continue
            if len(self._talks) >= MAX_TALKS:
                self._crowded = True
                break
            task = asyncio.get_running_loop().create_task(self._talk(domain, link))
            self._talks[domain] = task
            task.add_done_callback(functools.partial(self._talked, domain))
        await self._book.publish()
        await self._hold()

    def _choose(self, domain: str, now_us: int) -> Link | None:
        return next((link for link in self._links(domain) if not link.rests(now_us)), None)

    def _talked(self, domain: str, _task: asyncio.Task[None]) -> None:
        del self._talks[domain]
        if self._crowded:
            self._bell.set()

    async def _talk(self, domain: str, link: Link) -> None:
        try:
            talk = Talk(
                link,
                book=self._book,
                rosters=self._rosters,
                fresh=self._fresh.setdefault(domain, Allowance(NEW_A_MINUTE, MINUTE_US)),
                mint=self._mint,
                clock_us=self._clock_us,
            )
            done = await talk.run(await self._book.due(domain, self._clock_us(), BATCH))
            if done == BATCH:
                self._bell.set()  # more may be due; what an allowance stopped waits for the clock
            await self._tell_refused(domain, link)
            self._tell_disputed(domain, link, talk.disputed)
            await self._book.publish()
        except PosthouseError as error:
            observe.trouble("agreements", f"{domain}: negotiation broke off", error)
        except Exception as error:  # a supervised task: the next round goes on
            observe.trouble("agreements", f"{domain}: negotiation failed", error)

    async def _tell_refused(self, domain: str, link: Link) -> None:
        refused = (await self._book.counts()).get(domain, {}).get(State.REFUSED, 0)
        if refused:
            self._alerts.raise_(
                REFUSED,
                domain,
                f"{link.party} refuses {refused} agreements for {domain}",
                "ask the owner of the primary; they are asked for again after seven days "
                f"(posthouse agreements list --domain {domain} --state refused)",
            )
        else:
            self._alerts.clear(REFUSED, domain)

    def _tell_disputed(self, domain: str, link: Link, heard: Mapping[str, bool]) -> None:
        disputed = self._disputed.setdefault(domain, set())
        for canonical, differs in heard.items():
            (disputed.add if differs else disputed.discard)(canonical)
        if disputed:
            self._alerts.raise_(
                DISPUTED,
                domain,
                f"{link.party} knows no user {min(disputed)}, though its roster vouches for it"
                + (f" ({len(disputed)} such addresses)" if len(disputed) > 1 else ""),
                "tell the owner of the primary that its roster and its answers differ",
            )
        else:
            self._alerts.clear(DISPUTED, domain)

    async def _wait_for_bell(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._bell.wait()
        self._bell.clear()

    # ------------------------------------------------------------------ what workers learned

    async def _forget_ended(self) -> None:
        """An ended agreement is an address that nobody has: it is not kept for ever."""
        now_us = self._clock_us()
        if left_us(self._forget_us, now_us, longest_us=FORGET_EVERY_US):
            return
        self._forget_us = now_us + FORGET_EVERY_US
        early = await self._book.bring_forward(now_us, now_us + LONGEST_WAIT_US)
        if early:
            observe.note("agreements", f"{early} were put off by a clock that was ahead; asked now")
        count = await self._book.forget_ended(now_us, now_us - ENDED_FOR_US)
        if count:
            observe.note("agreements", f"{count} ended agreements are forgotten")

    async def _take_reports(self) -> None:
        reports = await asyncio.to_thread(self._reports.read, MAX_REPORTS)
        if not reports:
            return
        if any(not sighting.serial for report in reports for sighting in report.sightings):
            self._wishes = {
                domain: states.get(State.SEEN, 0) + states.get(State.REQUESTED, 0)
                for domain, states in (await self._book.counts()).items()
            }
        now_us = self._clock_us()
        await self._book.take(reports, lambda sighting, known: self._take(sighting, known, now_us))
        for login in (login for report in reports for login in report.refused_logins):
            entry = await self._book.find_agreement(login.agreement_id)
            if entry is not None:
                await self._book.change(
                    [entry.canonical],
                    lambda _key, known, why=login.why: (  # type: ignore[misc]
                        None if known is None else moves.refuse_login(known, why, now_us)
                    ),
                )
        await asyncio.to_thread(self._reports.forget, reports)
        self._bell.set()  # more may be waiting

    def _take(
        self, sighting: Sighting, known: ForwarderEntry | None, now_us: int
    ) -> ForwarderEntry | None:
        """Runs in the book's transaction. What nobody vouches for is limited."""
        if sighting.domain not in self._domains or not self._links(sighting.domain):
            return None
        if known is None and not sighting.serial:
            bucket = self._wanted.setdefault(sighting.domain, Allowance(NEW_A_MINUTE, MINUTE_US))
            waiting = self._wishes.get(sighting.domain, 0)
            if not bucket.left(now_us) or waiting >= MAX_WISHES:
                return None
            bucket.take(1, now_us)
            self._wishes[sighting.domain] = waiting + 1
        return moves.take_sighting(sighting, known, now_us)

    # ------------------------------------------------------------------ rosters

    async def _hear_rosters(self) -> None:
        """Ask every fresh roster about everybody it has not been asked about yet."""
        folds = {
            domain: how
            for domain in self._domains
            if (how := self._rosters.fold(domain)) is not None
        }
        if folds != self._folds:
            await self._book.set_folds(folds)
            self._folds = folds
        for domain in self._domains:
            facts = self._rosters.facts(domain)
            if facts is None or not facts.fresh:
                continue
            behind = await self._book.behind(domain, facts.serial, ROSTER_BATCH)
            if behind:
                await self._hear(domain, facts, behind)
                if len(behind) == ROSTER_BATCH:
                    self._bell.set()

    async def _hear(
        self, domain: str, facts: RosterFacts, entries: Sequence[ForwarderEntry]
    ) -> None:
        said: dict[str, bool | None] = {}
        for entry in entries:
            said[entry.canonical] = await self._rosters.testify(
                domain, entry.canonical.rpartition("@")[0]
            )
        if self._rosters.facts(domain) != facts:
            return  # swapped meanwhile: ask the new one
        now_us = self._clock_us()
        await self._book.change(
            list(said),
            lambda key, known: (
                None if known is None else moves.hear_roster(known, facts, said[key], now_us)
            ),
        )
        await self._book.note_asked(said, facts.serial)

    # ------------------------------------------------------------------ queued mail

    async def _hold(self) -> None:
        """Hold what is queued for addresses the granter does not know: never bounced."""
        for entry in await self._book.ended(HOLDS):
            addresses = dict.fromkeys((entry.canonical, entry.address, *entry.spellings))
            held = await self._holder.hold(entry.domain, list(addresses))
            await self._book.change(
                [entry.canonical],
                lambda _key, known: (
                    moves.rest(known)
                    if known is not None and known.standing.state is State.ENDED
                    else None
                ),
            )
            if held:
                observe.note(
                    "agreements",
                    f"<{clean(entry.canonical)}>: {held} recipients on hold: {entry.note}",
                )

    # ------------------------------------------------------------------ status

    async def describe(self) -> Mapping[str, Mapping[str, int]]:
        """For `status`: agreements by domain and state."""
        counts = await self._book.counts()
        return {
            domain: {state.name.lower(): count for state, count in states.items()}
            for domain, states in counts.items()
        }

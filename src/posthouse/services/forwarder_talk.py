"""One conversation of the forwarder with one granter about one domain.

Batches of requests, then completions side by side. A granter that gives no
usable answer is left alone for a while (`Link`), which costs no agreement
anything; an answer about one recipe changes that one only.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

from posthouse import observe
from posthouse.domain.agreement import DAY_US, State, no_answer_delay_us
from posthouse.domain.allowance import Allowance
from posthouse.domain.instants import left_us
from posthouse.errors import PeerFailure
from posthouse.log_sink import clean
from posthouse.mail.recipes import (
    MAX_RECIPES,
    AgreementRequest,
    Completion,
    Denial,
    RecipeResult,
    Refusal,
    Status,
)
from posthouse.ports_agreements import ForwarderBook, ForwarderEntry, GranterCalls, RosterWitness
from posthouse.services import forwarder_moves as moves

# Completions under way with one granter: each costs a round trip and a flush at both ends.
CONCURRENT: Final = 16
# A refusal that is about us, not about a recipe: a person has to look.
REFUSED_US_US: Final = 300_000_000
LONGEST_REST_US: Final = 3_600_000_000
# PROTOCOL.md §3: at most 1,000 new requests a minute per domain.
NEW_A_MINUTE: Final = 1_000
MINUTE_US: Final = 60_000_000


@dataclasses.dataclass(kw_only=True)
class Link:
    """One granter, and whether to leave it alone for now. forwarder_id: our name there."""

    party: str
    forwarder_id: str
    policy_url: str
    calls: GranterCalls
    failures: int = 0
    rest_until_us: int = 0
    trouble: str = ""

    def rests(self, now_us: int) -> bool:
        """It is left alone for now."""
        return left_us(self.rest_until_us, now_us, longest_us=LONGEST_REST_US) > 0

    def heard(self) -> None:
        """It answered."""
        self.failures, self.rest_until_us, self.trouble = 0, 0, ""

    def failed(self, why: str, delay_us: int, now_us: int) -> None:
        """It gave no usable answer, or refuses us."""
        self.failures += 1
        self.rest_until_us = now_us + delay_us
        if why != self.trouble:
            observe.note("agreements", f"{self.party}: {why}")
        self.trouble = why


class Talk:
    """See the module. Made anew for each round; `run` works off what it is given."""

    def __init__(
        self,
        link: Link,
        *,
        book: ForwarderBook,
        rosters: RosterWitness,
        fresh: Allowance,
        mint: Callable[[int], str],
        clock_us: Callable[[], int],
    ) -> None:
        """fresh: what the domain may still ask for.

        `disputed`, after `run`: canonical text → whether roster and granter differ about it.
        """
        self.disputed: dict[str, bool] = {}
        self._link = link
        self._book = book
        self._rosters = rosters
        self._fresh = fresh
        self._mint = mint
        self._clock_us = clock_us

    async def run(self, entries: Sequence[ForwarderEntry]) -> int:
        """Do the next step for each entry of one domain. Raises StorageError.

        Returns how many there was something to do about; fewer than were given when an
        allowance is used up.
        """
        steps = [(entry, moves.plan_step(entry)) for entry in entries]
        idle = [entry.canonical for entry, step in steps if step is moves.Step.NOTHING]
        if idle:
            await self._each(idle, lambda entry: moves.rest(entry) if _is_idle(entry) else None)
        asking = self._within_allowance([e for e, step in steps if step is moves.Step.ASK])
        granted = await self._ask(asking)
        completing = [entry for entry, step in steps if step is moves.Step.COMPLETE]
        await self._complete([*completing, *granted])
        return len(idle) + len(asking) + len(completing)

    @property
    def _rests(self) -> bool:
        return self._link.rests(self._clock_us())

    async def _each(
        self,
        canonicals: Sequence[str],
        step: Callable[[ForwarderEntry], ForwarderEntry | None],
    ) -> Sequence[ForwarderEntry]:
        return await self._book.change(
            canonicals, lambda _key, entry: None if entry is None else step(entry)
        )

    def _fail(self, error: PeerFailure) -> None:
        now_us = self._clock_us()
        delay_us = no_answer_delay_us(self._link.failures, error.retry_after_seconds)
        self._link.failed(f"cannot be reached: {error.detail}", delay_us, now_us)

    # ------------------------------------------------------------------ requests

    def _within_allowance(self, entries: list[ForwarderEntry]) -> list[ForwarderEntry]:
        """What was asked for before costs nothing; the rest waits for the next minute."""
        now_us = self._clock_us()
        left = self._fresh.left(now_us)
        taken: list[ForwarderEntry] = []
        count = 0
        for entry in entries:
            if not entry.recipe_id:
                if count >= left:
                    continue
                count += 1
            taken.append(entry)
        self._fresh.take(count, now_us)
        return taken[:MAX_RECIPES]

    async def _ask(self, entries: Sequence[ForwarderEntry]) -> list[ForwarderEntry]:
        """Ask for agreements; returns those that can be completed now."""
        if not entries or self._rests:
            return []
        link, now_us = self._link, self._clock_us()
        ready = await self._each(
            [entry.canonical for entry in entries],
            lambda entry: (
                moves.prepare_request(
                    entry,
                    granter=link.party,
                    forwarder_id=link.forwarder_id,
                    mint=self._mint,
                    now_us=now_us,
                )
                if moves.plan_step(entry) is moves.Step.ASK
                else None
            ),
        )
        return await self._post(ready)

    async def _post(self, entries: Sequence[ForwarderEntry]) -> list[ForwarderEntry]:
        if not entries or self._rests:
            return []
        link = self._link
        document = AgreementRequest(
            forwarder_id=link.forwarder_id,
            category="backup MX",
            policy_negotiation_url=link.policy_url,
            recipes=tuple(map(moves.make_recipe, entries)),
        )
        try:
            answer = await link.calls.request(document)
        except PeerFailure as error:
            self._fail(error)
            return []
        if isinstance(answer, Refusal):
            return await self._post_refused(entries, answer)
        link.heard()
        return await self._settle(entries, answer)

    async def _post_refused(
        self, entries: Sequence[ForwarderEntry], refusal: Refusal
    ) -> list[ForwarderEntry]:
        """Refused whole: find the one recipe it is about, or leave the granter alone."""
        about_one = (Denial.CONFLICT, Denial.MALFORMED, Denial.TOO_LARGE)
        now_us = self._clock_us()
        if refusal.denial not in about_one:
            delay_us = REFUSED_US_US
            if refusal.denial in (Denial.TOO_MANY, Denial.UNAVAILABLE):
                delay_us = no_answer_delay_us(self._link.failures, refusal.retry_after_seconds)
            self._link.failed(f"refuses us: {refusal.detail}", delay_us, now_us)
            return []
        if len(entries) > 1:
            middle = len(entries) // 2
            first = await self._post(entries[:middle])
            return [*first, *await self._post(entries[middle:])]
        (entry,) = entries
        if refusal.denial is Denial.CONFLICT:
            await self._each(
                [entry.canonical],
                lambda known: moves.remake(known, "the granter has another recipe", now_us),
            )
        else:
            await self._each(
                [entry.canonical],
                lambda known: moves.postpone(known, DAY_US, refusal.detail, now_us),
            )
        return []

    async def _settle(
        self, entries: Sequence[ForwarderEntry], results: Sequence[RecipeResult]
    ) -> list[ForwarderEntry]:
        by_key = {entry.canonical: result for entry, result in zip(entries, results, strict=True)}
        vouched: dict[str, bool | None] = {}
        for canonical, result in by_key.items():
            if result.status is Status.NO_SUCH_USER:
                local, _, domain = canonical.rpartition("@")
                vouched[canonical] = await self._rosters.testify(domain, local)
        now_us = self._clock_us()

        def settle(entry: ForwarderEntry) -> ForwarderEntry:
            return moves.settle_result(
                entry,
                by_key[entry.canonical],
                roster=self._rosters.facts(entry.domain),
                vouched=vouched.get(entry.canonical),
                now_us=now_us,
            )

        settled = await self._each(list(by_key), settle)
        for entry in settled:
            denied = by_key[entry.canonical].status is Status.NO_SUCH_USER
            ended = entry.standing.state is State.ENDED
            self.disputed[entry.canonical] = denied and not ended
            if denied:
                observe.note(
                    "agreements",
                    f"{self._link.party} knows no <{clean(entry.canonical)}>"
                    + ("" if ended else ", though its roster does"),
                )
        return [entry for entry in settled if moves.plan_step(entry) is moves.Step.COMPLETE]

    # ------------------------------------------------------------------ completions

    async def _complete(self, entries: Sequence[ForwarderEntry]) -> None:
        if not entries or self._rests:
            return
        ready = await self._each(
            [entry.canonical for entry in entries],
            lambda entry: (
                moves.prepare_completion(entry, self._mint)
                if moves.plan_step(entry) is moves.Step.COMPLETE
                else None
            ),
        )
        waiting = list(reversed(ready))

        async def work() -> None:
            while waiting and not self._rests:
                await self._complete_one(waiting.pop())

        workers = min(CONCURRENT, len(waiting))
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())

    async def _complete_one(self, entry: ForwarderEntry) -> None:
        for password in moves.list_candidates(entry):
            try:
                refusal = await self._link.calls.complete(
                    entry.completion_url,
                    Completion(
                        forwarder_id=entry.forwarder_id,
                        agreement_id=entry.agreement_id,
                        password=password,
                        new_password=entry.new_password,
                    ),
                )
            except PeerFailure as error:
                if error.stage == "url":
                    await self._postpone(entry, DAY_US, f"completion_url: {error.detail}")
                else:
                    self._fail(error)
                return
            self._link.heard()
            if refusal is None:
                await self._completed(entry)
                return
            if refusal.denial is not Denial.FORBIDDEN:
                await self._not_completed(entry, refusal)
                return
        now_us = self._clock_us()
        await self._each(
            [entry.canonical],
            lambda known: moves.settle_no_password(known, now_us) if _same(known, entry) else None,
        )

    async def _completed(self, entry: ForwarderEntry) -> None:
        now_us = self._clock_us()
        await self._each(
            [entry.canonical],
            lambda known: moves.settle_completion(
                known,
                agreement_id=entry.agreement_id,
                new_password=entry.new_password,
                now_us=now_us,
            ),
        )

    async def _not_completed(self, entry: ForwarderEntry, refusal: Refusal) -> None:
        now_us = self._clock_us()
        if refusal.denial is Denial.NOT_FOUND:
            why = f"the granter does not know {entry.agreement_id}"
            await self._each(
                [entry.canonical],
                lambda known: (
                    moves.settle_unknown(known, why, now_us) if _same(known, entry) else None
                ),
            )
        elif refusal.denial in (Denial.TOO_MANY, Denial.UNAVAILABLE):
            delay_us = no_answer_delay_us(entry.tries, refusal.retry_after_seconds)
            await self._postpone(entry, delay_us, refusal.detail)
        else:
            await self._postpone(entry, DAY_US, refusal.detail)

    async def _postpone(self, entry: ForwarderEntry, delay_us: int, why: str) -> None:
        now_us = self._clock_us()
        await self._each(
            [entry.canonical],
            lambda known: (
                moves.postpone(known, delay_us, why, now_us) if _same(known, entry) else None
            ),
        )


def _same(known: ForwarderEntry, sent: ForwarderEntry) -> bool:
    """Tell whether an answer is still about what is on record (not reset or remade meanwhile)."""
    return (known.agreement_id, known.one_time_password, known.password) == (
        sent.agreement_id,
        sent.one_time_password,
        sent.password,
    )


def _is_idle(entry: ForwarderEntry) -> bool:
    return moves.plan_step(entry) is moves.Step.NOTHING

"""Questions to one primary: does it take mail for this address? Answered by RCPT, then RSET.

A few sessions, opened by demand and closed when idle. Each address has a MAIL
of its own: the null sender may have one recipient only (RFC 5321 §4.5.5, and
Postfix's reject_multi_recipient_bounce). A session that heard some refusals is
left before the primary thinks of it as a guesser (Postfix: smtpd_soft_error_limit
10). A primary that cannot be reached, or refuses our MAIL, is left alone for
half a minute; what waits then is UNDECIDED at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from posthouse import observe
from posthouse.domain.instants import left_us
from posthouse.domain.live_check import (
    STANDARD_US,
    LiveFinding,
    Probe,
    Standard,
    classify_probe,
    decide_finding,
)
from posthouse.errors import NextHopFailure
from posthouse.mail.envelope import Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_relay import Target
from posthouse.ports_standby import PrimaryConnector, PrimarySession

MAX_SESSIONS: Final = 2
MAX_WAITING: Final = 200
MAX_REFUSED: Final = 7  # in one session
QUESTION_SECONDS: Final = 15.0  # for the replies to MAIL, RCPT and RSET together
IDLE_SECONDS: Final = 5.0
REST_US: Final = 30_000_000
DAY_US: Final = 86_400_000_000


@dataclass(slots=True)
class _Question:
    domain: str
    address: str
    sender: str
    answer: asyncio.Future[LiveFinding]


class _Known(NamedTuple):
    """Something about a domain, and since when."""

    value: str
    at_us: int


class _MailRefused(Exception):
    """The primary takes no mail from our sender."""


class LivePrimary:
    """One primary. find_targets: where it is now. random_local: makes a local part nobody has."""

    def __init__(
        self,
        connector: PrimaryConnector,
        find_targets: Callable[[str], Awaitable[tuple[Target, ...]]],
        *,
        clock_us: Callable[[], int],
        random_local: Callable[[], str],
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._connector = connector
        self._find_targets = find_targets
        self._clock_us = clock_us
        self._random_local = random_local
        self._idle_seconds = idle_seconds
        self._waiting: deque[_Question] = deque()
        self._more = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = 0
        self._rests_until_us = 0
        self._standards: dict[str, tuple[Standard, int]] = {}
        self._useless: dict[str, int] = {}
        self._randoms: dict[str, _Known] = {}
        self._last_taken: dict[str, _Known] = {}

    @property
    def rests(self) -> bool:
        """It could not be asked a moment ago."""
        return left_us(self._rests_until_us, self._clock_us(), longest_us=REST_US) > 0

    def find_useless(self) -> list[tuple[str, int]]:
        """Domains for which it takes everybody, and since when as far as we know."""
        return list(self._useless.items())

    def ask(self, domain: str, address: str, sender: str) -> asyncio.Future[LiveFinding] | None:
        """Ask about one address; None when too many questions wait.

        The future is EXISTS, ABSENT or UNDECIDED, and never fails.
        """
        if len(self._waiting) >= MAX_WAITING:
            return None
        answer: asyncio.Future[LiveFinding] = asyncio.get_running_loop().create_future()
        if self.rests:
            answer.set_result(LiveFinding.UNDECIDED)
            return answer
        self._waiting.append(_Question(domain, address, sender, answer))
        self._more.set()
        if len(self._waiting) > self._idle and len(self._tasks) < MAX_SESSIONS:
            task = asyncio.get_running_loop().create_task(self._converse())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answer

    async def close(self) -> None:
        """Leave; what waits is UNDECIDED."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._dismiss()

    # ------------------------------------------------------------------ one session

    async def _converse(self) -> None:
        question: _Question | None = None
        session: PrimarySession | None = None
        refused = 0
        try:
            while (question := await self._next()) is not None:
                if session is not None:
                    try:
                        refused += await self._answer(session, question)
                    except NextHopFailure:  # it was idle for too long: once more, from the start
                        session.close()
                        session = None
                if session is None:
                    session = await self._open(question.domain)
                    refused = await self._answer(session, question)
                question = None
                if refused >= MAX_REFUSED:
                    session.close()
                    session = None
        except (NextHopFailure, TimeoutError, _MailRefused) as error:
            self._rest(question, str(error) or "no answer in time")
        except Exception as error:  # a fault of our own: the addresses are not to blame
            observe.trouble("live", "a question to the primary failed", error)
            self._rest(question, "local error")
        finally:
            if session is not None:
                session.close()
            _settle(question, LiveFinding.UNDECIDED)

    async def _next(self) -> _Question | None:
        """The next question, None when none came for a while."""
        while not self._waiting:
            self._more.clear()
            self._idle += 1
            try:
                async with asyncio.timeout(self._idle_seconds):
                    await self._more.wait()
            except TimeoutError:
                if not self._waiting:  # one may have come in the same instant
                    return None
            finally:
                self._idle -= 1
        return self._waiting.popleft()

    async def _open(self, domain: str) -> PrimarySession:
        failure = NextHopFailure("DNS leaves nobody to ask", stage="connect")
        for target in await self._find_targets(domain):
            try:
                async with asyncio.timeout(QUESTION_SECONDS):
                    return await self._connector.open(target)
            except NextHopFailure as error:
                failure = error
            except TimeoutError:
                failure = NextHopFailure(f"{target.host}: slow to greet", stage="greeting")
        raise failure

    async def _answer(self, session: PrimarySession, question: _Question) -> int:
        """Settle one question; returns how many refusals that took."""
        domain = question.domain
        async with asyncio.timeout(QUESTION_SECONDS):
            standard, refused = await self._get_standard(session, question)
            probe = await self._probe(session, question.sender, question.address)
        if probe is Probe.TAKEN:
            self._last_taken[domain] = _Known(question.address, self._clock_us())
        _settle(question, decide_finding(probe, standard))
        return refused + probe.refused

    async def _get_standard(
        self, session: PrimarySession, question: _Question
    ) -> tuple[Standard, int]:
        """What this primary says where the truth is known, and how many refusals were new."""
        domain, now_us = question.domain, self._clock_us()
        known = self._standards.get(domain)
        if known is not None and 0 <= now_us - known[1] < STANDARD_US:
            return known[0], 0
        # The same address for a day: who greylists knows it when we come again.
        random = self._randoms.get(domain)
        if random is None or not 0 <= now_us - random.at_us < DAY_US:
            random = self._randoms[domain] = _Known(f"{self._random_local()}@{domain}", now_us)
        last = self._last_taken.get(domain)
        if last is not None and not 0 <= now_us - last.at_us < DAY_US:
            last = None
        sender = question.sender
        standard = Standard(
            random=await self._probe(session, sender, random.value),
            postmaster=await self._probe(session, sender, f"postmaster@{domain}"),
            last_taken=await self._probe(session, sender, last.value) if last else None,
        )
        self._standards[domain] = (standard, now_us)
        if not standard.takes_everybody:
            self._useless.pop(domain, None)
        elif domain not in self._useless:
            self._useless[domain] = now_us
            observe.alert(
                "live-check",
                f"the primary of {domain} takes every address: asking it says nothing, and mail "
                "for it is deferred; use a roster or a list of recipients (@domain: all exist)",
                domain=domain,
            )
        probes = (standard.random, standard.postmaster, standard.last_taken)
        return standard, sum(probe is not None and probe.refused for probe in probes)

    async def _probe(self, session: PrimarySession, sender: str, address: str) -> Probe:
        utf8 = not (address.isascii() and sender.isascii())
        if utf8 and not session.smtputf8:
            return Probe.OTHER
        reply = await session.mail(sender, size=0, body="", smtputf8=utf8, ret="", envid="")
        if not 200 <= reply.code < 300:
            raise _MailRefused(f"MAIL was refused: {reply}")
        domain = address.rpartition("@")[2]
        reply = await session.rcpt(Recipient(address=address, domain=domain))
        if reply.code == 421:
            raise NextHopFailure(f"RCPT: {reply}", stage="session", reply_code=421)
        await session.reset()
        return classify_probe(reply.code, _words(reply))

    # ------------------------------------------------------------------ when it does not work

    def _rest(self, question: _Question | None, why: str) -> None:
        if not self.rests:
            about = question.domain if question is not None else "a domain"
            observe.note("live", f"the primary of {about} is not asked for a while: {why}")
        self._rests_until_us = self._clock_us() + REST_US
        self._dismiss()

    def _dismiss(self) -> None:
        while self._waiting:
            _settle(self._waiting.popleft(), LiveFinding.UNDECIDED)


def _settle(question: _Question | None, finding: LiveFinding) -> None:
    if question is not None and not question.answer.done():
        question.answer.set_result(finding)


def _words(reply: Reply) -> str:
    return f"{reply.enhanced} {reply.text}" if reply.enhanced else reply.text

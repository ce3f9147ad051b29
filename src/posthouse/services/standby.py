"""Stands before the verdicts while the primary is up: relay, defer or proxy (domain/standby).

Only what our own verdict would accept is deferred: an unknown user hears 550
here as there, and nobody learns more than the primary tells. While the primary
is down, or nothing is known of it yet, every domain is in mode relay.
Fails open: without its table nobody is deferred.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec

from posthouse import observe
from posthouse.domain import verdict
from posthouse.domain.standby import PATIENCE_US, Standby, Turned, decide_turn, is_proven
from posthouse.domain.verdict import Verdict
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_session import OpenLetter, SessionFacts
from posthouse.services.proxy import Proxy

BETTER_MX: Final = Reply(
    451, "4.3.2", "The more preferred MX is up: deliver to the more preferred MX"
)

Own = Callable[[], Verdict | Awaitable[Verdict]]


class StandbyRule(msgspec.Struct, frozen=True, kw_only=True):
    """What one domain wants.

    Mode defer: patience: how often a client is turned away, >= 1; window_us: over how long.
    """

    mode: Standby = Standby.RELAY
    patience: int = 3
    window_us: int = PATIENCE_US


class Memory(Protocol):
    """Who was turned away; shared by all workers, lossy."""

    def find(self, *words: str) -> Turned | None: ...

    def put(self, turned: Turned, *words: str) -> None: ...


class StandbyGate:
    """See the module; a `ports_session.Gatekeeper`.

    rules: the domains that are not in mode relay, swapped whole by a reload; is_up: the domain's
    next hop takes mail now.
    """

    def __init__(
        self,
        rules: Mapping[str, StandbyRule],
        *,
        is_up: Callable[[str], bool],
        memory: Memory | None,
        proxy: Proxy,
        clock_us: Callable[[], int],
    ) -> None:
        self.rules = rules
        self._is_up = is_up
        self._memory = memory
        self._proxy = proxy
        self._clock_us = clock_us

    def judge(
        self, mailbox: Mailbox, session: SessionFacts, own: Own
    ) -> Verdict | Awaitable[Verdict]:
        """See `ports_session.Gatekeeper`."""
        domain = mailbox.domain
        rule = self.rules.get(domain)
        if rule is not None and rule.mode is not Standby.RELAY and not self._is_up(domain):
            rule = None
        refusal = self._proxy.must_wait(domain, session)
        if refusal is not None:
            if rule is not None and rule.mode is Standby.PROXY:
                return Verdict(refusal)
            later = Verdict(refusal)  # a refusal of our own is for good, whenever it comes
            return self._then(own(), lambda found: later if found.reply.positive else found)
        if rule is not None and rule.mode is Standby.PROXY and not verdict.carries_route(mailbox):
            recipient = Recipient(
                address=mailbox.spelled,
                domain=domain,
                notify=session.rcpt.notify,
                orcpt=session.rcpt.orcpt,
            )
            return self._proxy.judge(recipient, session, lambda: self._judge_own(session, own))
        if rule is not None and rule.mode is Standby.DEFER and not verdict.is_postmaster(mailbox):
            return self._then(own(), lambda found: self._turn(found, mailbox, session, rule))
        return self._judge_own(session, own)

    def wrap(
        self, letter: OpenLetter, envelope: Envelope, client: Client, session: SessionFacts
    ) -> OpenLetter:
        """See `ports_session.WrapLetter`."""
        return self._proxy.wrap(letter, envelope, client, session)

    def leave(self, session: SessionFacts) -> None:
        """See `ports_session.Gatekeeper`."""
        self._proxy.leave(session)

    def _judge_own(self, session: SessionFacts, own: Own) -> Verdict | Awaitable[Verdict]:
        return self._then(own(), lambda found: self._note(found, session))

    def _note(self, found: Verdict, session: SessionFacts) -> Verdict:
        if found.reply.positive:
            self._proxy.note_ours(session)
        return found

    @staticmethod
    def _then(
        found: Verdict | Awaitable[Verdict], act: Callable[[Verdict], Verdict]
    ) -> Verdict | Awaitable[Verdict]:
        if isinstance(found, Verdict):
            return act(found)

        async def later() -> Verdict:
            return act(await found)

        return later()

    def _turn(
        self, found: Verdict, mailbox: Mailbox, session: SessionFacts, rule: StandbyRule
    ) -> Verdict:
        """Turn the client away, unless it plainly cannot reach the primary."""
        memory = self._memory
        if not found.reply.positive or memory is None:
            return self._note(found, session)
        now_us = self._clock_us()
        domain = mailbox.domain
        proof = memory.find("network", domain, session.network)
        if proof is not None and is_proven(proof.last_us, now_us=now_us):
            return self._note(found, session)
        words = ("mail", domain, session.sender, mailbox.local)
        turned = decide_turn(
            memory.find(*words), now_us=now_us, patience=rule.patience, window_us=rule.window_us
        )
        if turned is not None:
            memory.put(turned, *words)
            return Verdict(BETTER_MX)
        if session.sender:  # bounces of several strangers to one user prove nothing of the last
            memory.put(Turned(now_us, now_us, 1), "network", domain, session.network)
        observe.note(
            "standby",
            f"{session.address} plainly cannot reach the primary of {domain}: let in",
            domain=domain,
            address=session.address,
        )
        return self._note(found, session)

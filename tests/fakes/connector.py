"""Next hops without sockets: a connector whose peers a test scripts.

Each address is a `FakePeer`. By default it takes everything; a test makes it
refuse (`connect_failure`, `probe_failure`), answer otherwise (`reply`), wait
(`hold`, then `session.answer()`), or break (`session.lose()`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from posthouse.errors import NextHopFailure
from posthouse.ports_relay import RecipientResult, SessionEnd, Target, Transaction, WorkSource

Reply = Callable[[Transaction], Sequence[RecipientResult]]


def accept(transaction: Transaction) -> Sequence[RecipientResult]:
    """250 for everybody."""
    return answer_with(250, "2.0.0 Ok: queued")(transaction)


def answer_with(code: int, text: str, stage: str = "dot") -> Reply:
    """The same answer for every recipient."""

    def reply(transaction: Transaction) -> list[RecipientResult]:
        return [
            RecipientResult(recipient.seq, code, f"{code} {text}", stage)
            for recipient in transaction.message.recipients
        ]

    return reply


def unreachable(detail: str = "connection refused") -> NextHopFailure:
    """What a closed port gives."""
    return NextHopFailure(detail, stage="connect")


def refusing(code: int = 554, text: str = "554 5.7.1 go away") -> NextHopFailure:
    """A greeting that turns us away."""
    return NextHopFailure(text, stage="greeting", reply_code=code, reply_text=text)


class FakePeer:
    """One address. `received` has every transaction it was given, `delivered` queue ids answered 250.

    depth: transactions a session takes before the first has its answer (pipelining).
    connecting: how many connects are being held by `gate`.
    """

    def __init__(self) -> None:
        self.connect_failure: NextHopFailure | None = None
        self.probe_failure: NextHopFailure | None = None
        self.reply: Reply = accept
        self.hold = False
        self.depth = 1
        self.gate: asyncio.Event | None = None
        self.probe_gate: asyncio.Event | None = None
        self.connecting = 0
        self.connects = 0
        self.probes = 0
        self.probe_rcpt = (250, "2.1.5 Ok")
        self.probed_for: list[tuple[str, ...]] = []
        self.sessions: list[FakeSession] = []
        self.received: list[Transaction] = []
        self.delivered: list[int] = []

    @property
    def open_sessions(self) -> list[FakeSession]:
        """Those not ended yet."""
        return [session for session in self.sessions if not session.ended]

    def down(self, failure: NextHopFailure | None = None) -> None:
        """Answer no connect and no probe from now on."""
        self.connect_failure = self.probe_failure = failure or unreachable()

    def up(self) -> None:
        """Take everything again."""
        self.connect_failure = self.probe_failure = None
        self.reply = accept


class FakeSession:
    """See `ports_relay.Session`."""

    def __init__(self, peer: FakePeer, target: Target, source: WorkSource) -> None:
        self.target = target
        self.taken: list[Transaction] = []
        self._peer = peer
        self._source = source
        self._quitting = False
        self._pumping = False
        self._end: asyncio.Future[SessionEnd] = asyncio.get_running_loop().create_future()

    @property
    def ended(self) -> bool:
        return self._end.done()

    def poke(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while not self.ended and not self._quitting and len(self.taken) < self._peer.depth:
                transaction = self._source.next_transaction()
                if transaction is None:
                    break
                self.taken.append(transaction)
                self._peer.received.append(transaction)
                if not self._peer.hold:
                    self._answer(self._peer.reply)
        finally:
            self._pumping = False
        self._end_if_quit()

    def answer(self, reply: Reply | None = None) -> None:
        """Answer the oldest transaction under way, then ask for more."""
        self._answer(reply or self._peer.reply)
        self.poke()

    def lose(
        self,
        why: str = "lost connection",
        *,
        after_dot: bool = False,
        end: SessionEnd | None = None,
    ) -> None:
        """Break: everything under way goes back."""
        taken, self.taken = self.taken, []
        for transaction in taken:
            self._source.returned(transaction, why=why, after_dot=after_dot)
        self._finish(end or SessionEnd(failure=why, stage="session"))

    def quit(self) -> None:
        self._quitting = True
        self._end_if_quit()

    def idle_since(self) -> float | None:
        return None if self.taken else 0.0

    async def wait_end(self) -> SessionEnd:
        return await asyncio.shield(self._end)

    def _answer(self, reply: Reply) -> None:
        transaction = self.taken.pop(0)
        results = reply(transaction)
        if all(200 <= result.code < 300 for result in results):
            self._peer.delivered.append(transaction.message.queue_id)
        self._source.finished(transaction, results)

    def _end_if_quit(self) -> None:
        if self._quitting and not self.taken and not self._pumping:
            self._finish(SessionEnd())

    def _finish(self, end: SessionEnd) -> None:
        if not self._end.done():
            self._end.set_result(end)


class FakeConnector:
    """See `ports_relay.Connector`. Peers are made when first named; an unscripted one takes everything."""

    def __init__(self) -> None:
        self._peers: dict[str, FakePeer] = {}
        self.targets: list[Target] = []

    def peer(self, address: str) -> FakePeer:
        """The peer at an address (any port)."""
        return self._peers.setdefault(address, FakePeer())

    async def connect(self, target: Target, source: WorkSource) -> FakeSession:
        peer = self.peer(target.address)
        peer.connects += 1
        self.targets.append(target)
        if peer.gate is not None:
            peer.connecting += 1
            try:
                await peer.gate.wait()
            finally:
                peer.connecting -= 1
        else:
            await asyncio.sleep(0)
        if peer.connect_failure is not None:
            raise peer.connect_failure
        session = FakeSession(peer, target, source)
        peer.sessions.append(session)
        asyncio.get_running_loop().call_soon(session.poke)
        return session

    async def probe(
        self, target: Target, recipients: Sequence[str] = ()
    ) -> Sequence[tuple[int, str]]:
        peer = self.peer(target.address)
        peer.probes += 1
        self.targets.append(target)
        if peer.probe_gate is not None:
            await peer.probe_gate.wait()
        await asyncio.sleep(0)
        if peer.probe_failure is not None:
            raise peer.probe_failure
        peer.probed_for.append(tuple(recipients))
        return [peer.probe_rcpt for _ in recipients]

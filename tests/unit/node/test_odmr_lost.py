"""A turned line that is lost, slow, or listened to: what the relays on it hear."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from fakes.open_door import until
from fakes.scripted_peer import DROP, STALL, Answer, ScriptedPeer
from fakes.turned_line import DOMAINS, fetching, house
from fakes.work_source import ListSource, make_transaction
from posthouse import observe
from posthouse.domain.replies import classify_reply
from posthouse.domain.reply_table import Effect, Fate
from posthouse.errors import NextHopFailure
from posthouse.observe import counters
from posthouse.transports.smtp_out import SmtpConnector

LARGE = b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n" * 4000


def told(sources: Iterable[ListSource]) -> bool:
    return all(source.finished_with or source.returned_with for source in sources)


def goes_again(source: ListSource) -> bool:
    """Not put off by anything that says something of the mail."""
    for _, after_dot in source.returned_with.values():
        if after_dot:
            return False
    return all(
        result.code == 421
        and classify_reply(result.code, result.text, result.stage)[::2]
        == (Fate.DEFERRED, Effect.SLOWER)
        for results in source.finished_with.values()
        for result in results
    )


@pytest.mark.parametrize("answers", [{"MAIL": DROP}, {"RCPT": DROP}, {"DATA": DROP}])
async def test_a_line_that_is_lost(tmp_path: Path, answers: dict[str, Answer]) -> None:
    """Whoever holds the line and whoever waits for it hears of a lost connection, at once."""
    async with (
        ScriptedPeer(answers) as primary,
        house(tmp_path) as h,
        fetching(h, primary) as connector,
    ):
        sources = [
            ListSource([make_transaction(queue_id=n, body=LARGE if n == 1 else b"x\r\n")])
            for n in range(1, 6)
        ]
        for n, source in enumerate(sources):
            with contextlib.suppress(NextHopFailure):  # the line is gone already
                await connector.connect(h.target(DOMAINS[n % 2]), source)
        async with asyncio.timeout(10):
            await until(lambda: told([s for s in sources if s.given]))
        assert sources[0].given
        assert all(goes_again(source) for source in sources), [
            (source.finished_with, source.returned_with) for source in sources
        ]
        await until(lambda: not list(tmp_path.iterdir()))
    assert primary.messages == []


async def test_lost_behind_the_final_dot(tmp_path: Path) -> None:
    """What the primary may have is put off, as by any relay; what waits for the line is not."""
    async with (
        ScriptedPeer({".": DROP}) as primary,
        house(tmp_path) as h,
        fetching(h, primary) as connector,
    ):
        first, second = (ListSource([make_transaction(queue_id=n)]) for n in (1, 2))
        await connector.connect(h.target("example.com"), first)
        await primary.wait_command("MAIL")
        await connector.connect(h.target("example.org"), second)
        await until(lambda: told((first, second)))
    ((result,),) = first.finished_with.values()
    assert (result.code, result.stage) == (451, "dot")
    assert "it may come twice" in result.text
    assert goes_again(second)


async def test_nobody_on_the_line(tmp_path: Path) -> None:
    """A primary that goes between messages takes the idle relays with it, in good order."""
    async with (
        ScriptedPeer() as primary,
        house(tmp_path) as h,
        fetching(h, primary) as connector,
    ):
        source = ListSource([make_transaction()])
        session = await connector.connect(h.target("example.com"), source)
        await until(lambda: bool(source.finished_with))
        await primary.stop()
        end = await asyncio.wait_for(session.wait_end(), 5)
        assert end.failure is None
        assert end.reply_code == 421


async def test_a_slow_line_is_waited_for(tmp_path: Path) -> None:
    """A relay in the queue for a slow line outlasts its own time-outs towards other primaries."""
    async with (
        ScriptedPeer({".": (STALL,)}) as primary,
        house(tmp_path, patience_seconds=60) as h,
        fetching(h, primary, patience_seconds=0.1) as connector,
    ):
        first, second = (ListSource([make_transaction(queue_id=n)]) for n in (1, 2))
        await connector.connect(h.target("example.com"), first)
        await primary.wait_command(".")
        await connector.connect(h.target("example.org"), second)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await until(lambda: told((first,)) or told((second,)))
        assert not told((first,))
        assert not told((second,))
        await primary.stop()


async def test_the_log_is_of_strangers_only(tmp_path: Path) -> None:
    """This node's own relays are no clients: no line, no count, nothing for fail2ban to read."""
    log = tmp_path / "log"
    run = tmp_path / "run"
    run.mkdir()
    before = (counters.connections, counters.recipients_refused, counters.messages_refused)
    answers: dict[str, Answer] = {"RCPT:no@example.com": "550 5.1.1 no", ".": "554 5.7.1 spam"}
    observe.configure(to=str(log))
    try:
        async with ScriptedPeer(answers) as primary, house(run) as h, fetching(h, primary) as c:
            source = ListSource([make_transaction("no@example.com", "yes@example.com")])
            session = await c.connect(h.target("example.com"), source)
            await until(lambda: bool(source.finished_with))
            session.quit()
            await session.wait_end()
            await _cut_one(c, h.target("example.com"))
    finally:
        observe.configure()
    written = log.read_text()
    assert "fetches example.com, example.org" in written
    assert "unknown[" not in written
    assert "reject" not in written
    now = (counters.connections, counters.recipients_refused, counters.messages_refused)
    assert now == before


async def _cut_one(connector: SmtpConnector, target: object) -> None:
    session = await connector.connect(target, ListSource([]))  # type: ignore[arg-type]
    session.drop("enough")
    await session.wait_end()

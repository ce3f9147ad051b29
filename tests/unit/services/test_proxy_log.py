"""What the log and the counters say of proxied messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes.scripted_peer import ScriptedPeer
from fakes.standby_world import PROXY, client_of, world
from posthouse import observe, tally

NOTE = b"Subject: x\r\n\r\nhello\r\n.\r\n"


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_message_that_passes(tmp_path: Path, as_json: bool) -> None:
    """Client, envelope and the primary's word are there; refusals look as they always do."""
    log = tmp_path / "log"
    before = observe.counters.messages_proxied, observe.counters.proxied_bytes
    tally.take()
    observe.configure(to=str(log), fmt="json" if as_json else "text")
    try:
        answers = {".": ("250 2.0.0 Ok: queued as 4XYZ", "554 5.7.1 spam")}
        async with (
            ScriptedPeer(answers) as primary,
            world(PROXY, {"example.com": primary.port}) as w,
            client_of(w) as client,
        ):
            for _ in range(2):
                await client.say("MAIL FROM:<s@b.example>")
                await client.say("RCPT TO:<alice@example.com>")
                await client.say("RCPT TO:<bob@example.com>")
                await client.say("DATA")
                await client.say(NOTE)
            size = len(primary.messages[0].content)
    finally:
        observe.configure()
    written = log.read_text()
    counters = observe.counters
    assert (counters.messages_proxied - before[0], counters.proxied_bytes - before[1]) == (1, size)
    counted = tally.take()["example.com"]
    assert (counted.proxied, counted.proxied_bytes, counted.accepted) == (1, size, 0)
    if as_json:
        (event,) = (e for e in map(json.loads, written.splitlines()) if e["event"] == "proxied")
        assert (event["client"], event["sender"], event["size"]) == (
            "127.0.0.1",
            "s@b.example",
            size,
        )
        assert event["recipients"] == ["alice@example.com", "bob@example.com"]
        return
    passed = [line for line in written.splitlines() if "proxy-accept" in line]
    assert [line.partition(": proxy-accept: ")[2] for line in passed] == [
        "END-OF-MESSAGE from unknown[127.0.0.1]: 250 2.0.0 Ok: queued as 4XYZ; "
        f"from=<s@b.example> to=<{user}@example.com> proto=ESMTP helo=<client.example>"
        for user in ("alice", "bob")
    ]
    (refused,) = (line for line in written.splitlines() if "NOQUEUE" in line)
    assert "reject: END-OF-MESSAGE from unknown[127.0.0.1]: 554 5.7.1 spam; " in refused

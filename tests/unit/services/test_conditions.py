"""From what is known of a node to alerts."""

from __future__ import annotations

from posthouse.ports_spool import DomainTotals
from posthouse.services import conditions
from posthouse.services.conditions import DAY_US, Hop

NOW = 1_700_000_000_000_000


def totals(
    domain: str, *, queued: int = 0, held: int = 0, oldest: int | None = None
) -> DomainTotals:
    return DomainTotals(
        domain=domain,
        queued=queued,
        held=held,
        oldest_us=oldest or NOW,
        size_bytes=1,
        oldest_queued_us=oldest,
    )


def test_next_hops_in_trouble() -> None:
    """Down, blocked, held by DNS and stopped are alerts; sending, probing and paused are not."""
    hops = [
        Hop(f"mx:{index}.example", state, 7, "why\x1b")
        for index, state in enumerate(
            ("up", "down", "suspect", "canary", "draining", "blocked", "held by DNS",
             "surge-stopped", "suspended")
        )
    ]  # fmt: skip
    found = list(conditions.next_hop_alerts(hops))
    assert [alert.kind for alert in found] == [
        "next-hop-down", "next-hop-blocked", "next-hop-held", "drain-stopped",
    ]  # fmt: skip
    assert all(alert.since_us == 7 and alert.what_to_do for alert in found)
    assert found[0].subject == "mx:1.example"
    assert found[0].text == "next hop mx:1.example is down: why?1B"


def test_a_primary_that_fetches_is_not_down() -> None:
    """That nobody is on the line is how it should be; all else about it is told."""
    hops = [Hop("atrn:example.com", state, 7, "why") for state in ("down", "surge-stopped")]
    assert [alert.kind for alert in conditions.next_hop_alerts(hops)] == ["drain-stopped"]


def test_held_and_old_mail() -> None:
    """By domain, summed over shards; held mail is not old mail."""
    rows = [
        totals("a.example", queued=2, oldest=NOW - 5 * DAY_US),
        totals("a.example", queued=1, held=3, oldest=NOW - 2 * DAY_US),
        totals("b.example", held=1),
        totals("c.example", queued=9, oldest=NOW - DAY_US + 1),
    ]
    found = list(conditions.queue_alerts(rows, oldest_age_us=DAY_US, now_us=NOW))
    assert [(alert.kind, alert.subject) for alert in found] == [
        ("mail-held", "a.example"),
        ("mail-held", "b.example"),
        ("oldest-message", "a.example"),
    ]
    assert found[0].text == "3 recipients of a.example are on hold"
    assert "3 recipients" in found[2].text
    assert found[2].since_us == NOW - 4 * DAY_US


def test_lists() -> None:
    """Only those with a problem."""
    facts = {"a.example": {"problem": ""}, "b.example": {"problem": "line 3: what?"}}
    (alert,) = conditions.list_alerts(facts)
    assert (alert.kind, alert.subject) == ("list-stale", "b.example")
    assert "line 3" in alert.text


def test_disk_certificate_and_intake() -> None:
    """At the bound nothing is wrong yet; an ended certificate is told as such."""
    assert conditions.disk_alert(100, 100, "/data") is None
    assert conditions.disk_alert(99, 100, "/data") is not None
    for left, told in ((15, None), (13, "ends"), (-1, "ended")):
        alert = conditions.certificate_alert("c.pem", NOW + left * DAY_US, days=14, now_us=NOW)
        assert (alert is None) is (told is None)
        if alert is not None:
            assert f" {told} " in alert.text
            assert alert.since_us <= NOW
    assert conditions.intake_alert(None) is None
    alert = conditions.intake_alert("only 3 MiB are free")
    assert alert is not None
    assert "only 3 MiB" in alert.text

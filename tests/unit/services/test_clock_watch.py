"""A clock that cannot be believed is an alert, and one that can is none."""

from __future__ import annotations

from posthouse.services.clock_watch import ClockWatch
from posthouse.services.standing_alerts import StandingAlerts

SECOND = 1_000_000
DAY = 86_400 * SECOND


class Host:
    """Two clocks that are moved by hand."""

    def __init__(self) -> None:
        self.now_us, self.elapsed_us = 20_000 * DAY, 5 * SECOND
        self.alerts = StandingAlerts(lambda: self.now_us)
        self.watch = ClockWatch(
            alerts=self.alerts, clock_us=lambda: self.now_us, elapsed_us=lambda: self.elapsed_us
        )

    def after(self, span_us: int, *, leap_us: int = 0) -> list[str]:
        self.elapsed_us += span_us
        self.now_us += span_us + leap_us
        self.watch.look()
        return [alert.text for alert in self.alerts.standing()]


def test_time_that_passes_is_no_alert() -> None:
    """A slow look and a time server's slewing are none either."""
    host = Host()
    assert host.after(2 * SECOND) == []
    assert host.after(600 * SECOND) == []
    assert host.after(2 * SECOND, leap_us=30 * SECOND) == []


def test_a_leap_stands_until_it_is_taken_back() -> None:
    """Or for an hour."""
    host = Host()
    (text,) = host.after(2 * SECOND, leap_us=DAY)
    assert "was set 1 day, 0:00:00 ahead" in text
    assert len(host.after(1_800 * SECOND)) == 1
    assert host.after(2 * SECOND, leap_us=-DAY) == []
    (text,) = host.after(2 * SECOND, leap_us=-3_600 * SECOND)
    assert "was set 1:00:00 back" in text
    assert len(host.after(3_599 * SECOND)) == 1
    assert host.after(3 * SECOND) == []


def test_the_time_of_others() -> None:
    """Five minutes are let pass; more is said, with the direction, until they agree."""
    host = Host()
    host.watch.hear("example.com", host.now_us - 299 * SECOND)
    assert host.alerts.standing() == ()
    host.watch.hear("example.com", host.now_us - 3_600 * SECOND)
    host.watch.hear("example.net", host.now_us + DAY)
    texts = [alert.text for alert in host.alerts.standing()]
    assert "the clock of this host is 1:00:00 ahead of that of example.com" in texts
    assert "the clock of this host is 1 day, 0:00:00 behind that of example.net" in texts
    for party in ("example.com", "example.net"):
        host.watch.hear(party, host.now_us)
    assert host.alerts.standing() == ()

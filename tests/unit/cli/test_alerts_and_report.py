"""`posthouse alerts` and `posthouse report`, without a running node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click import UsageError

from posthouse.cli.report import find_month
from posthouse.ports_alerts import Alert, Reason
from posthouse.storage.alert_store import SqliteAlertStore
from posthouse.storage.availability_store import SqliteAvailability
from posthouse.tally import Tally
from unit.cli.test_cli_commands import Site

HOUR = 3_600_000_000
FEB = 1_769_904_000_000_000  # 2026-02-01T00:00Z
MINUTE = 60_000_000


@pytest.fixture(name="site")
def make_site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.fill()
    return site


def watch(site: Site) -> Path:
    return site.directory / "data" / "watch"


def store_alerts(site: Site) -> None:
    store = SqliteAlertStore.open(watch(site) / "alerts.db")
    down = Alert(
        kind="next-hop-down",
        subject="mx:example.com",
        text="next hop mx:example.com is down: \x1b[31m refused",
        what_to_do="Look at the primary",
        since_us=FEB,
    )
    full = Alert(kind="disk-low", subject="/", text="little is free", since_us=FEB)
    one, _ = store.begin([full, down], now_us=FEB)
    store.end([one.number], over_us=FEB + 90 * MINUTE)
    store.close()


def test_what_is_wrong(site: Site) -> None:
    """Exits 1 while something is, 0 when nothing is; what is over only with --all."""
    done = site.run("alerts")
    assert (done.code, done.out) == (0, "Nothing is wrong.\n")
    store_alerts(site)
    done = site.run("alerts")
    assert done.code == 1
    assert (
        "next-hop-down  since 2026-02-01 00:00:00: next hop mx:example.com is down: ?1B" in done.out
    )
    assert "    Look at the primary" in done.out
    assert "disk-low" not in done.out
    everything = site.run("alerts", "--all")
    assert everything.code == 0
    assert "over  disk-low  from 2026-02-01 00:00:00 for 1h 30m: little is free" in everything.out
    rows = [json.loads(line) for line in site.run("alerts", "--all", "--json").out.splitlines()]
    assert [(row["kind"], row["state"]) for row in rows] == [
        ("next-hop-down", "standing"),
        ("disk-low", "over"),
    ]
    assert rows[1]["over_at"] == "2026-02-01T01:30:00Z"
    assert "next-hop-down" in site.run("status").out


def test_a_report_of_a_month(site: Site) -> None:
    """Outages with reasons and what came meanwhile, totals, and how long was watched."""
    store = SqliteAvailability.open(watch(site) / "availability.db")
    store.watched(now_us=FEB, fresh=True)
    store.watched(now_us=FEB + 20 * HOUR, fresh=False)
    store.follow("mx:example.com", ["example.com"], now_us=FEB)
    store.begin_outage("mx:example.com", Reason.REFUSED, "refused", from_us=FEB + HOUR)
    store.add(0, {"example.com": Tally(accepted=1200, accepted_bytes=5 * 10**6)}, now_us=FEB + HOUR)
    store.explain_outage("mx:example.com", Reason.TIMEOUT, "timed out")
    store.end_outage("mx:example.com", to_us=FEB + 3 * HOUR)
    home = Tally(
        delivered=1190, delivered_bytes=4 * 10**6, held=10, unknown=77, longest_us=2 * HOUR
    )
    store.add(0, {"example.com": home}, now_us=FEB + 4 * HOUR)
    through = Tally(proxied=2500, proxied_bytes=7 * 10**6)
    store.add(1, {"example.com": through}, now_us=FEB + 5 * HOUR)
    store.close()
    done = site.run("report", "EXAMPLE.com", "--month", "2026-02")
    assert done.code == 0
    assert "2026-02-01 01:00  2026-02-01 03:00      2h     1,200" in done.out
    assert "refused, timeout" in done.out
    assert "1 outages, 2h in all" in done.out
    assert "watched for 20h" in done.out
    assert "longest wait 2h" in done.out
    assert "refused unknown          77 recipients" in done.out
    assert "passed through        2,500 messages, 7.0 MB: taken by the primary" in done.out
    document = json.loads(site.run("report", "example.com", "--month", "2026-02", "--json").out)
    assert (document["proxied"], document["proxied_bytes"]) == (2500, 7 * 10**6)
    assert document["outages"][0]["meanwhile"]["proxied"] == 0
    assert document["down_seconds"] == 7200
    assert document["outages"][0]["meanwhile"]["accepted"] == 1200
    assert (document["held"], document["longest_wait_seconds"]) == (10, 7200)
    other = site.run("report", "example.com", "--month", "2026-03")
    assert "No outage was seen." in other.out
    assert site.run("report", "nowhere.example").code == 1
    assert site.run("report", "example.com", "--month", "2026-13").code == 2
    assert site.run("report", "not a domain").code == 2


def test_a_report_before_the_first_start(site: Site) -> None:
    """Nothing is recorded, nothing is made."""
    done = site.run("report", "example.com")
    assert done.code == 1
    assert "no node has run" in done.err
    assert not watch(site).exists()


def test_months() -> None:
    """In UTC, up to now; December ends in the next year."""
    assert find_month("2026-02", now_us=FEB + 10**15) == (FEB, FEB + 28 * 24 * HOUR)
    assert find_month(None, now_us=FEB + 5) == (FEB, FEB + 5)
    begin, end = find_month("2025-12", now_us=FEB)
    assert (end - begin, end) == (31 * 24 * HOUR, FEB - 31 * 24 * HOUR)
    assert find_month("2026-03", now_us=FEB) == (FEB + 28 * 24 * HOUR,) * 2
    with pytest.raises(UsageError):
        find_month("2026-2", now_us=FEB)


def test_trying_the_ways(site: Site) -> None:
    """Each is told a test alert and its failure is named; nobody to tell is a failure too."""
    text = site.config.read_text()
    site.config.write_text(text.replace('contact = "ops@elsewhere.example"\n', ""))
    done = site.run("alerts", "--test")
    assert (done.code, done.out.startswith("Nobody is told")) == (69, True)
    told = site.directory / "told"
    told.write_text("")
    alerts = '[alerts]\nmail = false\ncommand = ["/bin/sh", "-c", "cat > $0", "{}"]\n[[domain]]'
    site.config.write_text(text.replace("[[domain]]", alerts.format(told), 1))
    done = site.run("alerts", "--test")
    assert (done.code, done.out) == (0, "command: told\n")
    assert json.loads(told.read_text())["alerts"][0]["kind"] == "test"
    wrong = alerts.replace("cat > $0", "echo no >&2; exit 3").format(told)
    site.config.write_text(text.replace("[[domain]]", wrong, 1))
    done = site.run("alerts", "--test")
    assert done.code == 69
    assert "exit status 3 no" in done.out

"""`posthouse status`: one screen about the node."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

import posthouse
from posthouse.cli.alerts import read_alerts
from posthouse.cli.desks import Desks
from posthouse.cli.main import config_option, find_config
from posthouse.cli.texts import tell_age, tell_size, tell_utc
from posthouse.config import load
from posthouse.config_schema import Config
from posthouse.domain.drain import State
from posthouse.interfaces.control_wire import AlertStatus, NextHopStatus, WorkerStatus
from posthouse.log_sink import clean
from posthouse.ports_alerts import Alert, StoredAlert
from posthouse.ports_spool import DomainTotals

# The worst state of any worker is the one worth showing.
_SEVERITY = {
    word: rank
    for rank, word in enumerate(
        (
            State.UP,
            State.DRAINING,
            State.CANARY,
            State.SUSPECT,
            State.DOWN,
            State.HELD,
            State.BLOCKED,
            State.SURGE_STOPPED,
            State.SUSPENDED,
        )
    )
}


MOST_ALERTS = 100


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def status(config_file: Path | None, as_json: bool) -> int:
    """One screen: domains, next hops, queue, recipient lists, alerts."""
    from posthouse.node_desks import connect_desks

    config = load(find_config(config_file), check_files=False)
    with connect_desks(config) as (connections, live), Desks(connections, live=live) as desks:
        totals = merge_totals(desks.totals())
        workers = desks.status() if live else []
    stored = read_alerts(config, everything=False, limit=MOST_ALERTS)
    document = make_document(config, workers, totals, live=live, stored=stored)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join(format_screen(document)))
    return 0


def merge_totals(rows: Iterable[DomainTotals]) -> dict[str, DomainTotals]:
    """Sum the shards' counts by domain."""
    merged: dict[str, DomainTotals] = {}
    for row in rows:
        known = merged.get(row.domain)
        if known is not None:
            oldest = [at for at in (known.oldest_us, row.oldest_us) if at is not None]
            both = (known.oldest_queued_us, row.oldest_queued_us)
            waiting = [at for at in both if at is not None]
            row = DomainTotals(
                domain=row.domain,
                queued=known.queued + row.queued,
                held=known.held + row.held,
                oldest_us=min(oldest, default=None),
                oldest_queued_us=min(waiting, default=None),
                size_bytes=known.size_bytes + row.size_bytes,
            )
        merged[row.domain] = row
    return merged


def merge_next_hops(workers: Iterable[WorkerStatus]) -> dict[str, NextHopStatus]:
    """Each next hop once: its worst state in any worker, all sessions counted."""
    merged: dict[str, NextHopStatus] = {}
    for worker in workers:
        for hop in worker.next_hops:
            known = merged.get(hop.next_hop)
            if known is None:
                merged[hop.next_hop] = hop
                continue
            worse = max((known, hop), key=lambda one: _SEVERITY.get(State(one.state), 0))
            merged[hop.next_hop] = NextHopStatus(
                next_hop=hop.next_hop,
                state=worse.state,
                since_us=worse.since_us,
                why=worse.why,
                sessions=known.sessions + hop.sessions,
                in_hand=known.in_hand + hop.in_hand,
                domains=tuple(dict.fromkeys((*known.domains, *hop.domains))),
            )
    return merged


def make_document(
    config: Config,
    workers: list[WorkerStatus],
    totals: dict[str, DomainTotals],
    *,
    live: bool,
    stored: Sequence[StoredAlert] = (),
) -> dict[str, Any]:
    """Everything `status` knows, as --json shows it."""
    counters: dict[str, int] = {}
    for worker in workers:
        for name, count in worker.counters.items():
            counters[name] = counters.get(name, 0) + count
    problems = dict.fromkeys(w.intake_problem for w in workers if w.intake_problem)
    return {
        "hostname": config.hostname,
        "version": workers[0].version if workers else posthouse.__version__,
        "running": live,
        "contact": config.contact,
        "workers": [
            {"pid": worker.pid, "shards": worker.shards, "sessions": worker.sessions}
            for worker in workers
        ],
        "started_at": _tell(min((worker.started_us for worker in workers), default=None)),
        "intake_problems": list(problems),
        "counters": counters,
        "domains": list(_domain_documents(config, workers, totals)),
        "next_hops": [
            {
                "next_hop": hop.next_hop,
                "state": hop.state,
                "since": _tell(hop.since_us),
                "why": hop.why,
                "sessions": hop.sessions,
                "in_hand": hop.in_hand,
                "domains": hop.domains,
            }
            for hop in merge_next_hops(workers).values()
        ],
        "alerts": list(_alert_documents(workers, stored)),
    }


def _alert_documents(
    workers: list[WorkerStatus], stored: Sequence[StoredAlert]
) -> Iterator[dict[str, Any]]:
    """What is stored, and what workers say that is too young to be."""
    kinds = {one.alert.kind for one in stored}
    for one in stored:
        yield _alert_document(one.alert)
    for young in {
        (alert.kind, alert.text): alert
        for worker in workers
        for alert in worker.alerts
        if alert.kind not in kinds
    }.values():
        yield _alert_document(young)


def _alert_document(one: Alert | AlertStatus) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "subject": one.subject,
        "text": one.text,
        "since": _tell(one.since_us),
        "what_to_do": one.what_to_do,
    }


def _tell(instant_us: int | None) -> str | None:
    return None if not instant_us else tell_utc(instant_us)


def _domain_documents(
    config: Config, workers: list[WorkerStatus], totals: dict[str, DomainTotals]
) -> Iterator[dict[str, Any]]:
    """The configured domains first, then those that only have mail left."""
    configured = [domain.name for domain in config.domains]
    lists = next((worker.recipients for worker in workers if worker.recipients), {})
    for name in dict.fromkeys((*configured, *sorted(totals))):
        row = totals.get(name)
        yield {
            "domain": name,
            "configured": name in configured,
            "queued": row.queued if row else 0,
            "held": row.held if row else 0,
            "size": row.size_bytes if row else 0,
            "oldest_at": _tell(row.oldest_us) if row else None,
            "oldest_age": tell_age(row.oldest_us) if row and row.oldest_us else None,
            "recipients": lists.get(name),
        }


# --------------------------------------------------------------------------- the screen


def format_screen(document: dict[str, Any]) -> Iterator[str]:
    """The document as lines for a person."""
    if document["running"]:
        sessions = sum(worker["sessions"] for worker in document["workers"])
        counters = document["counters"]
        yield (
            f"{document['hostname']}: posthouse {document['version']}, "
            f"{len(document['workers'])} workers, {sessions} sessions, "
            f"up since {_local(document['started_at'])}"
        )
        yield (
            f"accepted {counters.get('messages_accepted', 0):,} messages "
            f"({tell_size(counters.get('accepted_bytes', 0))}), "
            f"delivered {counters.get('recipients_delivered', 0):,}, "
            f"refused {counters.get('recipients_refused', 0):,} recipients"
        )
        if counters.get("messages_proxied"):
            yield (
                f"passed through to a primary {counters['messages_proxied']:,} messages "
                f"({tell_size(counters.get('proxied_bytes', 0))})"
            )
    else:
        yield f"{document['hostname']}: no node is running; this is what its spool holds"
    for problem in document["intake_problems"]:
        yield f"NO MAIL IS TAKEN: {clean(problem)}"
    yield ""
    yield from _table(
        ("DOMAIN", "QUEUED", "HELD", "SIZE", "OLDEST", "RECIPIENTS"),
        [
            (
                row["domain"] + ("" if row["configured"] else " (not configured)"),
                f"{row['queued']:,}",
                f"{row['held']:,}",
                tell_size(row["size"]),
                row["oldest_age"] or "-",
                _tell_list(row["recipients"]),
            )
            for row in document["domains"]
        ],
    )
    if document["next_hops"]:
        yield ""
        yield from _table(
            ("NEXT HOP", "STATE", "SINCE", "SESSIONS", "WHY"),
            [
                (
                    row["next_hop"],
                    row["state"],
                    _local(row["since"]),
                    str(row["sessions"]),
                    clean(row["why"]) or "-",
                )
                for row in document["next_hops"]
            ],
        )
    if document["alerts"]:
        yield ""
        yield "ALERTS"
        for alert in document["alerts"]:
            since = f" (since {_local(alert['since'])})" if alert["since"] else ""
            yield f"  {alert['kind']}: {clean(alert['text'])}{since}"
            if alert["what_to_do"]:
                yield f"      {clean(alert['what_to_do'])}"


def _local(instant: str | None) -> str:
    """An RFC 3339 instant in local time, to the second."""
    if not instant:
        return "-"
    return f"{datetime.fromisoformat(instant).astimezone():%Y-%m-%d %H:%M:%S}"


def _tell_list(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "-"
    if facts.get("kind") == "roster":
        return _tell_roster(facts)
    told = f"{facts.get('entries', 0):,}"
    if facts.get("catch_all"):
        told += " + catch-all"
    if facts.get("loaded_at"):
        told += f", loaded {_local(str(facts['loaded_at']))}"
    if facts.get("problem"):
        told += f"; {clean(str(facts['problem']))}"
    return told


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as needed; numbers are told by their head and set to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    right = {"QUEUED", "HELD", "SIZE", "OLDEST", "SESSIONS"}
    for row in (head, *rows):
        cells = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _tell_roster(facts: dict[str, Any]) -> str:
    told = f"{facts.get('entries', 0):,}" + " + catch-all" * bool(facts.get("catch_all"))
    if facts.get("serial"):
        told += (
            f", roster serial {facts['serial']}, issued {_local(str(facts['loaded_at']))}, "
            f"expires {_local(str(facts['expires_at']))}"
        )
    if facts.get("set_aside"):
        told += (
            f"; {facts['set_aside']} is set aside ({clean(str(facts['set_aside_why']))}): "
            f"posthouse roster accept {facts['domain']} {facts['set_aside']}"
        )
    if facts.get("problem"):
        told += f"; {clean(str(facts['problem']))}"
    return told

"""`posthouse report`: how the primary of a domain was, and what the backup did meanwhile."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from posthouse.cli.main import EX_NOTHING, config_option, find_config
from posthouse.cli.texts import tell_size, tell_span, tell_utc
from posthouse.config import load
from posthouse.config_values import Wrong, read_domain
from posthouse.log_sink import clean
from posthouse.ports_alerts import DomainHistory, Outage


@click.command()
@click.argument("domain")
@config_option
@click.option("--month", metavar="YYYY-MM", help="A month, UTC  [default: this one, until now]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def report(domain: str, config_file: Path | None, month: str | None, as_json: bool) -> int:
    """Outages of DOMAIN's primary in a month, why, and what this backup took in and brought home.

    Times are UTC. Exits 1 when nothing is known of the domain in that time.
    """
    from posthouse.node_watch import availability_file
    from posthouse.storage.availability_store import SqliteAvailability

    try:
        name = read_domain(domain)
    except Wrong as wrong:
        raise click.UsageError(str(wrong)) from wrong
    config = load(find_config(config_file), check_files=False)
    from_us, to_us = find_month(month, now_us=time.time_ns() // 1000)
    store = SqliteAvailability.open_to_read(availability_file(config.data_dir))
    if store is None:
        click.echo("Nothing is recorded yet: no node has run here.", err=True)
        return EX_NOTHING
    try:
        history = store.read(name, from_us=from_us, to_us=to_us)
    finally:
        store.close()
    document = make_document(name, history, from_us, to_us)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join(format_report(document)))
    return 0 if history.next_hops or history.tally.accepted or history.tally.proxied else EX_NOTHING


def find_month(text: str | None, *, now_us: int) -> tuple[int, int]:
    """Its beginning and its end, or now when that is earlier. Raises UsageError."""
    now = datetime.fromtimestamp(now_us / 1e6, UTC)
    year, month = now.year, now.month
    if text is not None:
        match = re.fullmatch(r"(20\d\d|19[7-9]\d)-(0[1-9]|1[0-2])", text)
        if match is None:
            raise click.UsageError(f'--month: {text} is no month; write it like "2026-02"')
        year, month = int(match[1]), int(match[2])
    begin = datetime(year, month, 1, tzinfo=UTC)
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    begin_us, end_us = (int(at.timestamp()) * 1_000_000 for at in (begin, end))
    return begin_us, max(begin_us, min(end_us, now_us))


def make_document(name: str, history: DomainHistory, from_us: int, to_us: int) -> dict[str, Any]:
    """As --json shows it."""
    down_us = _sum_down(history.outages, from_us, to_us)
    counts = msgspec.structs.asdict(history.tally)
    longest_us = counts.pop("longest_us")
    return {
        "domain": name,
        "from": tell_utc(from_us),
        "to": tell_utc(to_us),
        "watched_seconds": history.watched_us / 1e6,
        "next_hops": list(history.next_hops),
        "down_seconds": down_us / 1e6,
        "outages": [_outage_document(outage, to_us) for outage in history.outages],
        **counts,
        "longest_wait_seconds": longest_us / 1e6,
    }


def _sum_down(outages: tuple[Outage, ...], from_us: int, to_us: int) -> int:
    """Time in which some next hop was down, within the month; overlaps count once."""
    total, until_us = 0, from_us
    for outage in outages:  # by their beginnings
        begin_us = max(outage.from_us, until_us)
        end_us = min(to_us if outage.to_us is None else outage.to_us, to_us)
        if end_us > begin_us:
            total += end_us - begin_us
            until_us = end_us
    return total


def _outage_document(outage: Outage, to_us: int) -> dict[str, Any]:
    end_us = to_us if outage.to_us is None else outage.to_us
    counts = msgspec.structs.asdict(outage.meanwhile)
    del counts["longest_us"]
    return {
        "next_hop": outage.next_hop,
        "from": tell_utc(outage.from_us),
        "to": None if outage.to_us is None else tell_utc(outage.to_us),
        "seconds": (end_us - outage.from_us) / 1e6,
        "reasons": [str(reason) for reason in outage.reasons],
        "why": outage.why,
        "meanwhile": counts,
    }


def format_report(document: dict[str, Any]) -> Iterator[str]:
    """The document as a table for a person."""
    yield f"{document['domain']}, {_short(document['from'])} to {_short(document['to'])} UTC"
    hops = ", ".join(document["next_hops"]) or "none known"
    yield f"next hop: {hops}; this node watched for {tell_span(document['watched_seconds'])}"
    yield ""
    outages = document["outages"]
    if not outages:
        yield "No outage was seen."
    else:
        rows = [("FROM", "TO", "LASTED", "ACCEPTED", "SIZE", "REASON")]
        for outage in outages:
            meanwhile = outage["meanwhile"]
            rows.append(
                (
                    _short(outage["from"]),
                    _short(outage["to"]) if outage["to"] else "still down",
                    tell_span(outage["seconds"]),
                    f"{meanwhile['accepted']:,}",
                    tell_size(meanwhile["accepted_bytes"]),
                    clean(", ".join(outage["reasons"])),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (
                cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            yield "  ".join(cells).rstrip()
        yield ""
        yield f"{len(outages)} outages, {tell_span(document['down_seconds'])} in all"
    yield ""
    accepted = tell_size(document["accepted_bytes"])
    yield f"accepted         {document['accepted']:>10,} messages, {accepted}"
    if document["proxied"]:
        yield (
            f"passed through   {document['proxied']:>10,} messages, "
            f"{tell_size(document['proxied_bytes'])}: taken by the primary within the session"
        )
    yield (
        f"delivered        {document['delivered']:>10,} recipients, "
        f"{tell_size(document['delivered_bytes'])}; longest wait "
        f"{tell_span(document['longest_wait_seconds'])}"
    )
    yield f"put on hold      {document['held']:>10,} recipients"
    yield f"refused unknown  {document['unknown']:>10,} recipients"


def _short(instant: str) -> str:
    """An RFC 3339 instant to the minute."""
    return instant[:16].replace("T", " ")

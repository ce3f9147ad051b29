"""`posthouse primary status`: rosters, backups and alerts of a `primary serve`, from its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from posthouse.cli.alerts import read_alerts
from posthouse.cli.texts import tell_local, tell_utc
from posthouse.config_pairs import load_backup_pairing
from posthouse.config_primary_schema import PrimaryConfig
from posthouse.domain.digests import roster_key_id
from posthouse.errors import StorageError
from posthouse.log_sink import clean
from posthouse.ports_alerts import StoredAlert
from posthouse.ports_publish import RosterInForce
from posthouse.services.backup_traffic import Traffic
from posthouse.services.roster_publisher import ALERT_KIND

MOST_ALERTS = 100


def read_status(config: PrimaryConfig) -> dict[str, Any]:
    """Everything `primary status` knows, as --json shows it. Raises ConfigError, StorageError."""
    from posthouse.node_primary_watch import traffic_file
    from posthouse.node_user import is_locked
    from posthouse.storage.traffic_file import load_traffic

    if config.data_dir.is_dir():
        os.listdir(config.data_dir)  # a plain PermissionError now instead of a riddle later
    alerts = read_alerts(config, everything=False, limit=MOST_ALERTS)
    problems = {one.alert.subject: one.alert.text for one in alerts if one.alert.kind == ALERT_KIND}
    traffic = load_traffic(traffic_file(config.data_dir), Traffic)
    return {
        "party": config.party,
        "base_url": config.base_url,
        "running": is_locked(config.data_dir),
        "process": _read_facts(config.data_dir),
        "contact": config.contact,
        "domains": list(_domain_documents(config, problems)),
        "backups": list(_backup_documents(config, traffic)),
        "alerts": [_alert_document(one) for one in alerts],
    }


def _read_facts(data_dir: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((data_dir / "run" / "primary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def _domain_documents(
    config: PrimaryConfig, problems: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    from posthouse.node_publishing import collect_keys, rosters_directory
    from posthouse.storage.roster_offers import RosterOffers

    offers = RosterOffers(rosters_directory(config))
    for name, keys in collect_keys(config).items():
        problem = problems.get(name, "")
        rosters: list[RosterInForce] = []
        try:
            found = [offers.look(name, roster_key_id(key)) for key in keys]
            rosters = [one for one in found if one is not None]
        except StorageError as error:
            problem = problem or error.detail
        if not keys:
            problem = "nobody is paired for it and there is no roster.key: no roster is made"
        elif not rosters:
            problem = problem or "no roster yet"
        yield {
            "domain": name,
            "problem": problem,
            "rosters": [
                {
                    "key_id": one.key_id,
                    "serial": one.serial,
                    "entries": one.count,
                    "made_at": tell_utc(one.issued_s * 1_000_000),
                    "not_after": tell_utc(one.expires_s * 1_000_000),
                }
                for one in rosters
            ],
        }


def _backup_documents(
    config: PrimaryConfig, traffic: Mapping[str, Traffic]
) -> Iterator[dict[str, Any]]:
    for backup in config.backups:
        party = load_backup_pairing(backup.pairing).party
        known = traffic.get(party, Traffic())
        yield {
            "party": party,
            "domains": backup.domains,
            "fetched": [
                {"domain": name, "serial": one.serial, "at": tell_utc(one.at_us)}
                for name, one in known.fetched.items()
            ],
            "agreements_at": tell_utc(known.agreements_us) if known.agreements_us else None,
        }


def _alert_document(stored: StoredAlert) -> dict[str, Any]:
    alert = stored.alert
    return {
        "kind": alert.kind,
        "subject": alert.subject,
        "text": alert.text,
        "since": tell_utc(alert.since_us),
        "what_to_do": alert.what_to_do,
    }


# --------------------------------------------------------------------------- the screen


def format_status(document: dict[str, Any]) -> Iterator[str]:
    """The document as lines for a person."""
    pid = document["process"].get("pid")
    runs = f"runs as process {pid}" if document["running"] and pid else "does not run"
    yield f"{document['party']} at {document['base_url']}: primary serve {runs}"
    yield ""
    for domain in document["domains"]:
        yield domain["domain"] + (f"  {clean(domain['problem'])}" if domain["problem"] else "")
        for one in domain["rosters"]:
            yield (
                f"    roster {one['serial']}  {one['entries']:,} entries, made "
                f"{_local(one['made_at'])}, good until {_local(one['not_after'])}; "
                f"key {one['key_id']}"
            )
    for backup in document["backups"]:
        yield ""
        yield f"{backup['party']}  backs up {', '.join(backup['domains'])}"
        for one in backup["fetched"]:
            yield f"    has roster {one['serial']} of {one['domain']}, {_local(one['at'])}"
        if not backup["fetched"]:
            yield "    has fetched no roster yet"
        at = backup["agreements_at"]
        yield f"    agreements: {'nothing yet' if at is None else 'last word ' + _local(at)}"
    if document["alerts"]:
        yield ""
    for alert in document["alerts"]:
        yield f"{alert['kind']}  since {_local(alert['since'])}: {clean(alert['text'])}"
        yield f"    {clean(alert['what_to_do'])}"


def _local(instant: str) -> str:
    return tell_local(int(datetime.fromisoformat(instant).timestamp() * 1_000_000))

"""Frozen settings from posthouse.toml; reports every mistake at once.

Promise: `load` returns a `Config` whose every value has been read, or raises
ConfigError with one line for each mistake, `file:line: key: what; remedy`, in
the order of the file. Certificates and recipient files are opened to see that
they can be read; nothing is written and no network is used.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from posthouse.config_checks import Findings, check_whole
from posthouse.config_checks_peers import (
    check_backups,
    check_https,
    check_primaries,
    check_rosters,
)
from posthouse.config_locator import locate_keys
from posthouse.config_reading import parse_toml, read_text_file
from posthouse.config_recipients import LookUpsConfig, RosterOrigin, resolve_origin
from posthouse.config_schema import LAYOUT, SECTIONS, Config, LogConfig, SpoolConfig
from posthouse.config_schema_alerts import AlertsConfig, check_alerts
from posthouse.config_schema_domain import DomainConfig
from posthouse.config_schema_peers import FurtherBackupConfig, HttpsConfig, PairedPrimaryConfig
from posthouse.config_schema_pull import OdmrConfig, read_pulls
from posthouse.config_schema_relay import DnsConfig, RelayConfig
from posthouse.config_schema_smtp import SmtpConfig
from posthouse.errors import ConfigError

_PRIMARYS_FILE = (
    "is the configuration of a primary, with a party; this wants a backup's, posthouse.toml"
)


def load(file: str | Path, *, lists_may_wait: bool = False, check_files: bool = True) -> Config:
    """Read and check a configuration file. Raises ConfigError with all its mistakes.

    lists_may_wait: a recipients file that cannot be read is a warning only. A node
    starts all the same, with the list of before in force: one lost file of one
    domain is no reason to turn away the mail of all.
    check_files: False for operators' commands, which need none of the files named.
    """
    path = Path(file)
    text = read_text_file(path)
    table = parse_toml(path, text)
    if "party" in table and "hostname" not in table:
        raise ConfigError([f"{file}: {_PRIMARYS_FILE}"])
    findings = Findings(str(path), locate_keys(text))
    findings.lists_may_wait = lists_may_wait
    findings.check_files = check_files
    config = _build(table, path.absolute(), findings)
    if findings.mistakes or config is None:
        raise ConfigError(findings.sorted_mistakes(), lists=findings.lists)
    return config


# --------------------------------------------------------------------------- sections


def _build(table: dict[str, Any], file: Path, findings: Findings) -> Config | None:
    LAYOUT.check_top(table, findings)
    top = LAYOUT.read_top(table, findings)
    sections = {
        name: LAYOUT.read_table(name, table, findings)
        for name in SECTIONS
        if name and name not in LAYOUT.arrays
    }
    domains = LAYOUT.read_tables("domain", table, findings, required=True)
    primaries = LAYOUT.read_tables("primary", table, findings, required=False)
    backups = LAYOUT.read_tables("backup", table, findings, required=False)
    pulls = LAYOUT.read_tables("pull", table, findings, required=False)
    _resolve_paths(file.parent, top, sections, domains, [*primaries, *backups, *pulls])
    check_whole(top, sections, domains, findings)
    check_https(sections["https"], sections["smtp"], findings)
    check_primaries(primaries, findings)
    check_rosters(domains, primaries, findings)
    check_backups(backups, domains, findings)
    fetched = read_pulls(pulls, sections["odmr"]["listen"], domains, findings)
    check_alerts(sections["alerts"], top["contact"], findings)
    if findings.mistakes:
        return None
    config = Config(
        file=file,
        smtp=SmtpConfig(**sections["smtp"]),
        relay=RelayConfig(**sections["relay"]),
        dns=DnsConfig(**sections["dns"]),
        log=LogConfig(**sections["log"]),
        spool=SpoolConfig(**sections["spool"]),
        https=HttpsConfig(**sections["https"]),
        alerts=AlertsConfig(**sections["alerts"]),
        lookups=LookUpsConfig(**sections["lookups"]),
        domains=tuple(map(_make_domain, domains)),
        primaries=tuple(PairedPrimaryConfig(**primary) for primary in primaries),
        backups=tuple(FurtherBackupConfig(**backup) for backup in backups),
        odmr=OdmrConfig(**sections["odmr"]),
        pulls=fetched,
        **top,
    )
    return dataclasses.replace(config, warnings=findings.sorted_warnings())


def _make_domain(read: dict[str, Any]) -> DomainConfig:
    place = read["recipients"]
    if isinstance(place, RosterOrigin):
        return DomainConfig(**{**read, "recipients": None, "roster": place})
    return DomainConfig(**read)


def _resolve_paths(
    base: Path,
    top: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    domains: list[dict[str, Any]],
    others: list[dict[str, Any]],
) -> None:
    """Make paths absolute; relative ones start where the file is."""
    for holder, name in (
        (top, "data_dir"),
        (sections["smtp"], "certificate"),
        (sections["smtp"], "private_key"),
        (sections["relay"], "ca_file"),
        (sections["https"], "certificate"),
        (sections["https"], "private_key"),
        (sections["alerts"], "webhook_secret_file"),
        (sections["alerts"], "webhook_ca_file"),
        *((o, name) for o in others for name in ("pairing", "own", "secret_file") if name in o),
    ):
        if holder[name] is not None:
            holder[name] = base / holder[name]
    for domain in domains:
        place = domain["recipients"]
        if isinstance(place, RosterOrigin):
            domain["recipients"] = resolve_origin(base, place)
        elif place is not None:
            domain["recipients"] = base / place
    log = sections["log"]
    if log["to"] not in (None, "auto", "stderr", "syslog"):
        log["to"] = str(base / log["to"])

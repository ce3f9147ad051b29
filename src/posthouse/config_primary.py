"""Frozen settings from primary.toml; reports every mistake at once.

As `config.load` for a node: either a `PrimaryConfig`, or ConfigError with one line
for each mistake. A file is a primary's when it has a `party`.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any

from posthouse.config_checks import Findings, check_certificate, check_user
from posthouse.config_locator import locate_keys
from posthouse.config_pairs import load_backup_pairing, load_own_pairing
from posthouse.config_primary_alerts import (
    PrimaryAlertsConfig,
    check_primary_alerts,
    resolve_alerts,
)
from posthouse.config_primary_pages import check_pages, make_pages_config
from posthouse.config_primary_schema import (
    LAYOUT,
    PairedBackupConfig,
    PostfixConfig,
    PrimaryConfig,
    PrimaryHttpsConfig,
    PublishedDomainConfig,
)
from posthouse.config_primary_values import make_trap_rules
from posthouse.config_reading import parse_toml, read_text_file
from posthouse.config_schema import LogConfig
from posthouse.config_values import Endpoint
from posthouse.domain.source_kinds import (
    CsvSpec,
    PasswdSpec,
    PatternsSpec,
    TextSpec,
    resolve_paths,
)
from posthouse.errors import ConfigError
from posthouse.mail.roster import MAX_RULES
from posthouse.proto.base_url import is_loopback

_BACKUPS_FILE = (
    "is the configuration of a backup, with a hostname; this wants a primary's, primary.toml"
)


def is_primary_file(file: str | Path) -> bool:
    """Tell whether a file is a primary's configuration: it has a `party`. Never raises."""
    try:
        return "party" in tomllib.loads(read_text_file(Path(file)))
    except (ConfigError, ValueError, RecursionError):
        return False


def load_primary(file: str | Path, *, check_files: bool = True) -> PrimaryConfig:
    """Read and check a primary.toml. Raises ConfigError with all its mistakes.

    check_files: False where certificate, sources and pairings are not needed.
    """
    path = Path(file)
    text = read_text_file(path)
    table = parse_toml(path, text)
    if "hostname" in table and "party" not in table:
        raise ConfigError([f"{file}: {_BACKUPS_FILE}"])
    findings = Findings(str(path), locate_keys(text))
    findings.check_files = check_files
    config = _build(table, path.absolute(), findings)
    if findings.mistakes or config is None:
        raise ConfigError(findings.sorted_mistakes())
    return config


def _build(table: dict[str, Any], file: Path, findings: Findings) -> PrimaryConfig | None:
    LAYOUT.check_top(table, findings)
    top = LAYOUT.read_top(table, findings)
    https = LAYOUT.read_table("https", table, findings)
    postfix = LAYOUT.read_table("postfix", table, findings)
    pages = LAYOUT.read_table("pages", table, findings)
    alerts = LAYOUT.read_table("alerts", table, findings)
    log = LAYOUT.read_table("log", table, findings)
    domains = LAYOUT.read_tables("domain", table, findings, required=True)
    backups = LAYOUT.read_tables("backup", table, findings, required=False)
    _resolve(file.parent, top, https, log, domains, backups)
    resolve_alerts(file.parent, alerts)
    _resolve_places(file.parent, postfix, findings)
    _check_domains(domains, findings)
    _check_backups(top, domains, backups, findings)
    _check_https(https, bool(backups), findings)
    check_pages(pages, findings)
    check_primary_alerts(alerts, top["contact"], findings)
    if findings.check_files:
        check_user(top["user"], findings)
    if findings.mistakes:
        return None
    config = PrimaryConfig(
        file=file,
        https=PrimaryHttpsConfig(**https),
        postfix=PostfixConfig(**postfix),
        pages=make_pages_config(pages),
        alerts=PrimaryAlertsConfig(**alerts),
        log=LogConfig(**log),
        domains=tuple(PublishedDomainConfig(**domain) for domain in domains),
        backups=tuple(PairedBackupConfig(**backup) for backup in backups),
        **top,
    )
    return dataclasses.replace(config, warnings=findings.sorted_warnings())


def _resolve(
    base: Path,
    top: dict[str, Any],
    https: dict[str, Any],
    log: dict[str, Any],
    domains: list[dict[str, Any]],
    backups: list[dict[str, Any]],
) -> None:
    """Make paths absolute; relative ones start where the file is."""
    for holder, name in (
        (top, "data_dir"),
        (https, "certificate"),
        (https, "private_key"),
        *((backup, name) for backup in backups for name in ("pairing", "own")),
    ):
        if holder[name] is not None:
            holder[name] = base / holder[name]
    if log["to"] not in (None, "auto", "stderr", "syslog"):
        log["to"] = str(base / log["to"])
    for domain in domains:
        domain["sources"] = tuple(
            resolve_paths(spec, lambda path: str(base / path)) for spec in domain["sources"] or ()
        )


def _resolve_places(base: Path, postfix: dict[str, Any], findings: Findings) -> None:
    """Sockets: absolute paths in directories that are there."""
    for name, place in postfix.items():
        if not isinstance(place, Path):
            continue
        path = postfix[name] = base / place
        if findings.check_files and not path.parent.is_dir():
            findings.wrong(("postfix", name), f"{path.parent} is not a directory", "make it first")
    places = [place for place in postfix.values() if place is not None]
    if len(places) != len(set(places)):
        findings.wrong(
            ("postfix", "policy_listen"), "is the same place as auth_socket", "name another one"
        )


def _check_domains(domains: list[dict[str, Any]], findings: Findings) -> None:
    first: dict[str, int] = {}
    for index, domain in enumerate(domains):
        name = domain["name"]
        if name is not None and first.setdefault(name, index) != index:
            line = findings.line_of(("domain", first[name], "name"))
            findings.wrong(
                ("domain", index, "name"), f"{name} stands twice (line {line})", "remove one"
            )
        rules = len(make_trap_rules(domain["traps"] or ())) + len(domain["rules"] or ())
        if rules > MAX_RULES:
            findings.wrong(
                ("domain", index, "traps"),
                f"{rules} rules with those for traps",
                f"{MAX_RULES} are allowed",
            )
        if not domain["sources"] and domain["catch_all"] is False and not rules:
            findings.wrong(
                ("domain", index, "sources"),
                "nobody would exist but postmaster",
                'name a source, like "file:users.txt"',
            )
        if findings.check_files:
            _check_sources(index, domain, findings)


def _check_sources(index: int, domain: dict[str, Any], findings: Findings) -> None:
    for at, spec in enumerate(domain["sources"]):
        if isinstance(spec, (TextSpec, CsvSpec, PatternsSpec, PasswdSpec)) and not os.access(
            spec.path, os.R_OK
        ):
            findings.wrong(
                ("domain", index, "sources", at),
                f"{spec.path} cannot be read",
                "name a readable file",
            )


def _check_backups(
    top: dict[str, Any],
    domains: list[dict[str, Any]],
    backups: list[dict[str, Any]],
    findings: Findings,
) -> None:
    names = {domain["name"] for domain in domains}
    owners: dict[Path, int] = {}
    for index, backup in enumerate(backups):
        for at, name in enumerate(backup["domains"] or ()):
            if name not in names:
                findings.wrong(
                    ("backup", index, "domains", at),
                    f"{name} is no [[domain]] of this file",
                    "add it, or remove it here",
                )
        own = backup["own"]
        if own is not None and owners.setdefault(own, index) != index:
            findings.wrong(
                ("backup", index, "own"),
                "another backup has the same file",
                "make one for each: posthouse pair offer",
            )
        if findings.check_files and own is not None and backup["pairing"] is not None:
            _check_pairing(index, backup, top["party"], findings)


def _check_pairing(
    index: int, backup: dict[str, Any], party: str | None, findings: Findings
) -> None:
    path = ("backup", index, "own")
    try:
        own = load_own_pairing(backup["own"], "primary")
    except ConfigError as error:
        findings.wrong(path, *_split(error))
    else:
        if party is not None and own.party != party:
            findings.wrong(
                path, f"is made for party {own.party}, not {party}", "posthouse pair offer"
            )
        missing = [name for name in backup["domains"] or () if name not in own.domains]
        if missing:
            findings.wrong(
                path,
                f"does not name {missing[0]}",
                "make a new one: posthouse pair offer",
            )
    try:
        load_backup_pairing(backup["pairing"])
    except ConfigError as error:
        findings.wrong(("backup", index, "pairing"), *_split(error))


def _split(error: ConfigError) -> tuple[str, str]:
    what, _, remedy = error.mistakes[0].rpartition("; ")
    return what, remedy


def _check_https(https: dict[str, Any], paired: bool, findings: Findings) -> None:
    check_certificate("https", https, findings)
    if https["certificate"] is not None or ("https", "certificate") in findings.lines:
        return
    if ("https", "listen") not in findings.lines:
        https["listen"] = (Endpoint(address="127.0.0.1", port=8447),)
        if paired:
            findings.warn(
                ("https", "certificate"),
                "there is none: backups are served on 127.0.0.1:8447 only",
                "give certificate and private_key",
            )
    for at, door in enumerate(https["listen"] or ()):
        if not is_loopback(door.address):
            findings.wrong(
                ("https", "listen", at),
                f"{door} without a certificate",
                'give certificate and private_key, or listen on "127.0.0.1:8447"',
            )

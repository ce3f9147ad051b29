"""What no single value of [https] and [[primary]] shows: certificates, pairing files, clashes."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from posthouse.config_checks import Findings, check_certificate
from posthouse.config_pairs import (
    load_backup_pairing,
    load_own_pairing,
    load_primary_pairing,
    warn_of_open_file,
)
from posthouse.config_recipients import RosterOrigin
from posthouse.config_values import Endpoint
from posthouse.errors import ConfigError
from posthouse.proto.pairing import PrimaryPairing

Tell = Callable[[tuple[str | int, ...], str, str], None]


def check_https(https: dict[str, Any], smtp: dict[str, Any], findings: Findings) -> None:
    """Take the certificate of [smtp] where there is no other; without one stay on loopback."""
    if https["certificate"] is None and https["private_key"] is None:
        https["certificate"], https["private_key"] = smtp["certificate"], smtp["private_key"]
    else:
        check_certificate("https", https, findings)
    if https["certificate"] is None and https["listen"]:
        https["listen"] = tuple(
            _keep_on_loopback(index, door, findings) for index, door in enumerate(https["listen"])
        )


def _keep_on_loopback(index: int, door: Endpoint, findings: Findings) -> Endpoint:
    address = ip_address(door.address)
    path = ("https", "listen", index)
    if address.is_unspecified:
        inside = "::1" if address.version == 6 else "127.0.0.1"
        findings.warn(
            path,
            f"without a certificate it is {inside} that is listened on",
            "give certificate and private_key, here or in [smtp]",
        )
        return Endpoint(address=inside, port=door.port)
    if not address.is_loopback:
        findings.wrong(
            path,
            f"{door} without a certificate",
            'give certificate and private_key, or listen on "127.0.0.1:8447"',
        )
    return door


def check_primaries(primaries: list[dict[str, Any]], findings: Findings) -> None:
    """Every pairing file can be read, and each primary stands there once.

    A node that starts takes a lost file for a warning: mail does not need it.
    """
    if not findings.check_files:
        return
    tell: Tell = findings.warn if findings.lists_may_wait else findings.wrong
    parties: dict[str, int] = {}
    for index, primary in enumerate(primaries):
        pairing, own = primary["pairing"], primary["own"]
        if pairing is not None:
            _check_pairing(index, pairing, parties, findings, tell)
        if own is not None:
            _check_own(index, own, findings, tell)


def check_rosters(
    domains: list[dict[str, Any]], primaries: list[dict[str, Any]], findings: Findings
) -> None:
    """Every roster has keys: of the primary it names, of its own pairing, or of the one primary
    that has the domain. Files that cannot be read were told elsewhere.
    """
    if not findings.check_files:
        return
    tell: Tell = findings.warn if findings.lists_may_wait else findings.wrong
    paired = [primary["pairing"] for primary in primaries if primary["pairing"] is not None]
    known = [theirs for theirs in map(_try_pairing, paired) if theirs is not None]
    for index, domain in enumerate(domains):
        _check_one_owner(("domain", index), domain["name"], known, tell)
        origin = domain["recipients"]
        if isinstance(origin, RosterOrigin) and domain["name"]:
            _check_origin(("domain", index, "recipients"), domain["name"], origin, known, tell)


def _check_one_owner(
    at: tuple[str | int, ...], name: str, known: list[PrimaryPairing], tell: Tell
) -> None:
    """All who are asked about a domain speak for one owner: a backup in front of us names the
    owner's signing key, a second primary has its own.
    """
    claims = [theirs for theirs in known if name in theirs.domains]
    rivals = [theirs for theirs in claims if theirs.public_key != claims[0].public_key]
    if rivals:
        tell(
            at,
            f"{claims[0].party} and {rivals[0].party} both say that {name} is theirs, with "
            "different signing keys",
            "a domain has one owner: remove one [[primary]], or ask for a pairing without it",
        )


def _check_origin(
    at: tuple[str | int, ...],
    name: str,
    origin: RosterOrigin,
    known: list[PrimaryPairing],
    tell: Tell,
) -> None:
    if origin.kind == "file" and not Path(origin.place).is_file():
        tell(at, f"{origin.place} cannot be read", "name a readable file")
    if origin.kind == "primary":
        _check_primary_of(at, name, origin, known, tell)
    if origin.pairing is not None:
        try:
            theirs = load_primary_pairing(origin.pairing)
        except ConfigError as error:
            tell(at, *_split(error))
            return
        if name not in theirs.domains:
            tell(at, f"{origin.pairing} is not about {name}", "name the pairing of its owner")
        return
    if origin.kind != "primary" and not any(name in theirs.domains for theirs in known):
        tell(
            at,
            "nothing says who may sign it",
            f'add pairing: {{ {origin.kind} = "{origin.place}", pairing = "FILE" }}',
        )


def _check_primary_of(
    at: tuple[str | int, ...],
    name: str,
    origin: RosterOrigin,
    known: list[PrimaryPairing],
    tell: Tell,
) -> None:
    match = [theirs for theirs in known if theirs.party == origin.place]
    if not match:
        parties = ", ".join(theirs.party for theirs in known) or "none"
        tell(at, f"no [[primary]] is {origin.place}", f"pair with it; there are: {parties}")
    elif name not in match[0].domains:
        what = f"the pairing with {origin.place} is not about {name}"
        tell(at, what, "ask the primary for a new one")


def _try_pairing(path: Path) -> PrimaryPairing | None:
    try:
        return load_primary_pairing(path)
    except ConfigError:
        return None


def check_backups(
    backups: list[dict[str, Any]], domains: list[dict[str, Any]], findings: Findings
) -> None:
    """Further backups are paired, and back up domains of ours."""
    ours = {domain["name"] for domain in domains}
    tell: Tell = findings.warn if findings.lists_may_wait else findings.wrong
    for index, backup in enumerate(backups):
        for name in backup["domains"] or ():
            if name not in ours:
                what = f"{name} is no [[domain]] here"
                findings.wrong(("backup", index, "domains"), what, "add it, or take it out")
        if not findings.check_files:
            continue
        for key, load in (("pairing", load_backup_pairing), ("own", _load_own_of_primary)):
            if backup[key] is None:
                continue
            try:
                load(backup[key])
            except ConfigError as error:
                tell(("backup", index, key), *_split(error))
            else:
                _warn_if_open(("backup", index, key), backup[key], findings)


def _load_own_of_primary(path: Path) -> object:
    return load_own_pairing(path, "primary")


def _check_pairing(
    index: int, path: Path, parties: dict[str, int], findings: Findings, tell: Tell
) -> None:
    try:
        theirs = load_primary_pairing(path)
    except ConfigError as error:
        tell(("primary", index, "pairing"), *_split(error))
        return
    _warn_if_open(("primary", index, "pairing"), path, findings)
    first = parties.setdefault(theirs.party, index)
    if first != index:
        line = findings.line_of(("primary", first))
        findings.wrong(
            ("primary", index), f"{theirs.party} stands twice (line {line})", "remove one"
        )


def _check_own(index: int, path: Path, findings: Findings, tell: Tell) -> None:
    try:
        load_own_pairing(path, "backup")
    except ConfigError as error:
        tell(("primary", index, "own"), *_split(error))
        return
    _warn_if_open(("primary", index, "own"), path, findings)


def _warn_if_open(at: tuple[str | int, ...], path: Path, findings: Findings) -> None:
    warning = warn_of_open_file(path)
    if warning is not None:
        what, _, remedy = warning.rpartition("; ")
        findings.warn(at, what, remedy)


def _split(error: ConfigError) -> tuple[str, str]:
    what, _, remedy = error.mistakes[0].rpartition("; ")
    return what, remedy

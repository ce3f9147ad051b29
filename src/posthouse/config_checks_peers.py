"""What no single value of [https] and [[primary]] shows: certificates, pairing files, clashes."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from posthouse.config_checks import Findings, check_certificate
from posthouse.config_pairs import load_own_pairing, load_primary_pairing, warn_of_open_file
from posthouse.config_values import Endpoint
from posthouse.errors import ConfigError

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

"""How single values of the configuration are read.

Every reader takes what TOML gave and returns the value the node works with, or
raises `Wrong` with what is wrong and what to write instead. Nothing is read
from disk here. Durations become `timedelta`, sizes octets, domains A-labels.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from posthouse.errors import AddressError
from posthouse.mail.address import normalize_domain

Read = Callable[[Any], Any]

_DURATION = re.compile(r"(?:[0-9]{1,12}(?:ms|[smhdw])){1,12}")
_DURATION_PART = re.compile(r"([0-9]+)(ms|[smhdw])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZE = re.compile(r"([0-9]{1,18}) ?([kmgt]?i?b)", re.IGNORECASE)
_FACTORS = {
    "b": 1,
    **{f"{prefix}b": 1000**i for i, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**i for i, prefix in enumerate("kmgt", 1)},
}


class Wrong(Exception):
    """What is wrong with a value, as (where below the key, what, remedy) triples."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.findings: list[tuple[tuple[int | str, ...], str, str]] = [((), what, remedy)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An IP address (text form) and a port; port 0 lets the system choose (`listen` only)."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else self.address_port()

    def address_port(self) -> str:
        return f"{self.address}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FixedHop:
    """A next hop given as a URI. host: A-labels or an IP address in text form."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"smtp://{host}:{self.port}"


def say(value: Any) -> str:
    """Show a value of the file the way TOML writes it, cut to a readable length."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + (value if len(value) <= 60 else value[:57] + "...") + '"'
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else str(value)


def read_text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise Wrong(f"{say(value)} is not a text", "write it in quotes")
    if not value.strip() or "\0" in value:
        raise Wrong("the text is empty", "give a value or leave the key out")
    return value


def read_flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Wrong(f"{say(value)} is neither true nor false", "write true or false, no quotes")
    return value


def read_count(low: int, high: int) -> Read:
    """Reader of a whole number from low to high."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"{say(value)} is not a number", f"write a number from {low} to {high}")
        if not low <= value <= high:
            raise Wrong(f"{value} is out of range", f"write a number from {low} to {high}")
        return value

    return read


def read_choice(*choices: str) -> Read:
    """Reader of one of a few words."""
    told = " or ".join(f'"{choice}"' for choice in choices)

    def read(value: Any) -> str:
        if value not in choices:
            raise Wrong(f"{say(value)} is not known here", f"write {told}")
        return str(value)

    return read


def parse_duration(text: str) -> timedelta | None:
    """Read "30s", "5m", "1h30m", "21d"; None when it is none of these."""
    if not _DURATION.fullmatch(text):
        return None
    try:
        return timedelta(
            seconds=sum(int(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
        )
    except OverflowError:
        return None


def read_duration(low: str, high: str) -> Read:
    """Reader of a duration from low to high (given as in the file)."""
    least, most = parse_duration(low), parse_duration(high)
    assert least is not None
    assert most is not None

    def read(value: Any) -> timedelta:
        remedy = (
            f'write a duration with its unit, such as "30s", "5m", "1h30m", "21d" ({low} to {high})'
        )
        if not isinstance(value, str):
            raise Wrong(f"{say(value)} has no unit", remedy)
        duration = parse_duration(value.strip())
        if duration is None:
            raise Wrong(f"{say(value)} is not a duration", remedy)
        if not least <= duration <= most:
            raise Wrong(f"{say(value)} is out of range", f"stay between {low} and {high}")
        return duration

    return read


def parse_size(text: str) -> int | None:
    """Read "50MB" (powers of ten) or "10MiB" (powers of two); None when it is neither."""
    match = _SIZE.fullmatch(text.strip())
    return None if match is None else int(match[1]) * _FACTORS[match[2].lower()]


def read_size(low: str, high: str) -> Read:
    """Reader of a size in octets from low to high (given as in the file)."""
    least, most = parse_size(low), parse_size(high)
    assert least is not None
    assert most is not None

    def read(value: Any) -> int:
        remedy = f'write a size with its unit, like "50MB" or "10MiB" ({low} to {high})'
        if isinstance(value, int) and not isinstance(value, bool):
            size: int | None = value
        else:
            size = parse_size(value) if isinstance(value, str) else None
        if size is None:
            raise Wrong(f"{say(value)} is not a size", remedy)
        if not least <= size <= most:
            raise Wrong(f"{say(value)} is out of range", f"stay between {low} and {high}")
        return size

    return read


def read_list(read: Read, *, empty: bool = True) -> Read:
    """Reader of a list; every bad element is told, and so is one that stands twice."""

    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Wrong(f"{say(value)} is not a list", f"write [{say(value)}]")
        if not value and not empty:
            raise Wrong("the list is empty", "give at least one element")
        found: list[Any] = []
        wrong: Wrong | None = None
        for index, element in enumerate(value):
            try:
                found.append(read(element))
            except Wrong as error:
                wrong = wrong or _no_findings()
                wrong.findings += [((index, *at), *rest) for at, *rest in error.findings]  # type: ignore[misc]
        if wrong is not None:
            raise wrong
        return tuple(found)

    return read_all


def read_distinct(read: Read, *, empty: bool = True) -> Read:
    """Reader of a list whose elements may not repeat."""
    read_all = read_list(read, empty=empty)

    def read_set(value: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = read_all(value)
        wrong: Wrong | None = None
        for index, element in enumerate(found):
            if element in found[:index]:
                wrong = wrong or _no_findings()
                wrong.findings.append(((index,), f"{element} stands twice", "remove one"))
        if wrong is not None:
            raise wrong
        return found

    return read_set


def _no_findings() -> Wrong:
    wrong = Wrong("", "")
    wrong.findings.clear()
    return wrong


def read_domain(value: Any) -> str:
    """A domain name, brought to lower-case A-labels (UTS 46, non-transitional)."""
    text = read_text(value)
    if "@" in text:
        raise Wrong(f"{say(value)} is an address", "write the domain alone")
    if text.startswith(("*.", ".")):
        raise Wrong(f"{say(value)} is a pattern", "give every domain a [[domain]] of its own")
    try:
        name = normalize_domain(text)
    except AddressError:
        name = ""
    if not name or _is_address(name) or name.rsplit(".", 1)[-1].isdigit():
        raise Wrong(f"{say(value)} is not a domain name", 'write it like "example.com"')
    return name


def read_host_name(value: Any) -> str:
    """A fully qualified host name."""
    name = read_domain(value)
    if "." not in name:
        raise Wrong(
            f"{say(value)} is not a full name",
            'write the name clients find in DNS, like "mx2.example.net"',
        )
    return name


def read_mailbox(value: Any) -> str:
    """An address local@domain; the domain is brought to A-labels."""
    local, at, domain = read_text(value).rpartition("@")
    if not at or not local or any(c.isspace() for c in local):
        raise Wrong(f"{say(value)} is not an address", 'write it like "ops@example.org"')
    return f"{local}@{read_domain(domain)}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def read_address(value: Any) -> str:
    """An IP address in its canonical text form."""
    text = read_text(value).strip("[]")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise Wrong(
            f"{say(value)} is not an IP address", 'write it like "192.0.2.1" or "2001:db8::1"'
        ) from None


def _split_endpoint(text: str, default_port: int | None) -> tuple[str, int] | None:
    """Take "host:port", "[v6]:port" apart; None when it is neither."""
    match = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d{1,5}))?", text)
    if match is None:
        # An IPv6 address without a port needs no brackets where the port has a default.
        return (text, default_port) if default_port is not None and _is_address(text) else None
    port = int(match[2]) if match[2] else default_port
    if port is None or port > 65535:
        return None
    return match[1].strip("[]"), port


def read_endpoint(default_port: int | None = None) -> Read:
    """Reader of an IP address with a port, "0.0.0.0:25" or "[::]:25"."""

    def read(value: Any) -> Endpoint:
        parts = _split_endpoint(read_text(value), default_port)
        if parts is None or not _is_address(parts[0]):
            raise Wrong(
                f"{say(value)} is not an IP address with a port",
                'write it like "0.0.0.0:25", "[::]:25" or "192.0.2.1:25"',
            )
        return Endpoint(address=str(ipaddress.ip_address(parts[0])), port=parts[1])

    return read


def read_fixed_hop(value: Any) -> FixedHop:
    """One URI smtp://host[:port]."""
    remedy = 'write it like "smtp://10.0.0.1:25" or "smtp://mail.example.com"'
    text = read_text(value)
    try:
        url = urlsplit(text)
    except ValueError:
        raise Wrong(f"{say(value)} is not a URI", remedy) from None
    if not url.netloc:
        raise Wrong(f"{say(value)} is not a URI", remedy)
    if url.scheme != "smtp":
        raise Wrong(f"{url.scheme}:// is not supported in this version", remedy)
    if url.path not in ("", "/") or url.query or url.fragment or "@" in url.netloc:
        raise Wrong(f"{say(value)} has more than a host and a port", remedy)
    parts = _split_endpoint(url.netloc, 25)
    if parts is None or parts[1] == 0:
        raise Wrong(f"{say(value)} has no valid host and port", remedy)
    host, port = parts
    if _is_address(host):
        return FixedHop(host=str(ipaddress.ip_address(host)), port=port)
    return FixedHop(host=read_domain(host), port=port)


_read_hops = read_distinct(read_fixed_hop, empty=False)


PULL: Final = (FixedHop(host="pull", port=0),)
"""`next_hop = "pull"`: the primary fetches its mail (ATRN)."""


def read_next_hop(value: Any) -> tuple[FixedHop, ...]:
    """ "mx" → (); "pull" → PULL; a list of URIs, tried in order; one URI is a list of one."""
    if value == "mx":
        return ()
    if value == "pull":
        return PULL
    if isinstance(value, str) and "://" in value:
        return (read_fixed_hop(value),)
    if not isinstance(value, list):
        raise Wrong(
            f"{say(value)} is not a next hop", 'write "mx" or a list like ["smtp://10.0.0.1:25"]'
        )
    hops: tuple[FixedHop, ...] = _read_hops(value)
    return hops


def read_path(value: Any) -> Path:
    """A path; `config` makes it relative to the file."""
    return Path(read_text(value))

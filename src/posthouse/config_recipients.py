"""`recipients` of a domain: a text file, or where its roster comes from."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, Final, Literal

from posthouse.config_reading import Key
from posthouse.config_values import Wrong, read_count, read_path, say
from posthouse.domain.roster import DEFAULT_MAX_LOSS_PERCENT
from posthouse.proto.base_url import parse_url

_KNOWN: Final = ("primary", "url", "file", "pairing", "max_loss")
_EXAMPLE: Final = '{ primary = "example.com" }'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RosterOrigin:
    """Where the roster of a domain comes from.

    place: a party we are paired with, a URL, or a file. pairing: whose keys it is made with,
    None: those of the [[primary]] that is named or has the domain. max_loss: percent of the
    entries that may go without asking.
    """

    kind: Literal["primary", "url", "file"]
    place: str
    pairing: Path | None = None
    max_loss: int = DEFAULT_MAX_LOSS_PERCENT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LookUpsConfig:
    """Slow digests of rosters: [lookups]."""

    threads: int
    guesses: int


LOOKUP_KEYS: Final = (
    Key(
        name="threads",
        read=read_count(1, 64),
        default=2,
        why="How many slow digests (scrypt) of rosters a worker computes at once; each takes up to "
        "64 MiB for some milliseconds. Others wait, at most 100 a thread; more get 451 4.4.3.",
    ),
    Key(
        name="guesses",
        read=read_count(1, 1_000_000),
        default=100,
        why="Unknown addresses that one client network (IPv4 /24, IPv6 /64) may try in an hour "
        "where the digest is slow or the primary is asked; then 451 4.7.1, in the end 421. "
        "Postfix: 20 errors a session.",
    ),
)


def read_recipients(value: Any) -> Path | RosterOrigin:
    """A path of a text file, of a `.roster` file, an https URL, or a table that names one."""
    if isinstance(value, str):
        if value.partition("://")[0] in ("https", "http"):
            return RosterOrigin(kind="url", place=_read_url(value))
        path = read_path(value)
        assert isinstance(path, Path)
        return RosterOrigin(kind="file", place=value) if path.suffix == ".roster" else path
    if not isinstance(value, dict):
        raise Wrong(f"{say(value)} is neither a file nor a table", f"write a path or {_EXAMPLE}")
    return _read_table(value)


def _read_table(table: dict[str, Any]) -> RosterOrigin:
    for name in table:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.6)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KNOWN)}"
            raise Wrong(f"unknown key {name}", remedy)
    kinds = [name for name in ("primary", "url", "file") if name in table]
    if len(kinds) != 1:
        raise Wrong("needs one of primary, url and file", f"write {_EXAMPLE}")
    kind, place = kinds[0], table[kinds[0]]
    if not isinstance(place, str) or not place:
        raise Wrong(f"{kind} is not a text", f"write {_EXAMPLE}")
    pairing = None
    if "pairing" in table:
        pairing = read_path(table["pairing"])
    loss = read_count(0, 100)(table["max_loss"]) if "max_loss" in table else None
    return RosterOrigin(
        kind="primary" if kind == "primary" else "url" if kind == "url" else "file",
        place=_read_url(place) if kind == "url" else place,
        pairing=pairing,
        max_loss=DEFAULT_MAX_LOSS_PERCENT if loss is None else loss,
    )


def _read_url(text: str) -> str:
    try:
        parse_url(text)
    except ValueError as error:
        raise Wrong(f"{text!r}: {error}", "write https://HOST/PATH") from error
    return text


def resolve_origin(base: Path, origin: RosterOrigin) -> RosterOrigin:
    """Make its paths absolute; relative ones start at `base`."""
    pairing = origin.pairing if origin.pairing is None else base / origin.pairing
    place = str(base / origin.place) if origin.kind == "file" else origin.place
    return dataclasses.replace(origin, place=place, pairing=pairing)

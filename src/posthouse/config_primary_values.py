"""How the values of primary.toml are read: sources, folds, rules, digests.

Readers as in `config_values`: what TOML gave in, what the publisher works with
out, or `Wrong`. Patterns are compiled, so that a bad one is named here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal

from posthouse.config_values import (
    Endpoint,
    Read,
    Wrong,
    read_choice,
    read_count,
    read_domain,
    read_endpoint,
    read_flag,
    read_list,
    read_size,
    read_text,
    say,
)
from posthouse.domain.recipients import Fold
from posthouse.domain.roster_rules import MAX_PATTERN_OCTETS, compile_rules
from posthouse.domain.source_kinds import SourceSpec
from posthouse.domain.source_specs import SpecError, parse_source
from posthouse.errors import AddressError, RosterRefused
from posthouse.mail.address import MAX_LOCAL_OCTETS, unquote_local_part
from posthouse.mail.roster import MAX_RULES, RosterLimits, RosterPolicy, RosterRule
from posthouse.proto.base_url import parse_base_url

SHIPPED_RULES: Final[dict[str, tuple[RosterRule, ...]]] = {
    # draft-levine-smtp-batv: prvs=KDDDSSSSSS=local, a key number, a day, six hex digits.
    "batv": (
        RosterRule(
            match="(?i)prvs=[0-9]{4}[0-9a-f]{6}=.+", action="accept", note="BATV return paths"
        ),
    ),
    # SRS0=hash=day=domain=local and SRS1=…, as written by postsrsd and pysrs.
    "srs": (RosterRule(match="(?i)srs[01][=+-].+", action="accept", note="SRS return paths"),),
    # The service addresses of Mailman 2 and 3.
    "mailman": (
        RosterRule(
            match="(?i).+-(?:bounces|confirm|join|leave|owner|request|subscribe|unsubscribe)"
            "(?:[+].*)?",
            action="accept",
            note="service addresses of lists",
        ),
    ),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DigestChoice:
    """How digests are made; n, p: of scrypt."""

    scheme: Literal["hmac-sha256", "scrypt"]
    bytes: int
    n: int
    p: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecoyChoice:
    """How the count is padded: by `percent`, then up to a multiple."""

    percent: int
    multiple: int


def read_source(value: Any) -> SourceSpec:
    """One source of addresses."""
    try:
        return parse_source(value)
    except SpecError as error:
        raise Wrong(error.what, error.remedy) from error


def read_base_url(value: Any) -> str:
    """The URL below which the backups find this host."""
    text = read_text(value)
    try:
        parse_base_url(text)
    except ValueError as error:
        raise Wrong(str(error), 'write it like "https://mail.example.com:8447/"') from error
    return text


def _read_members(value: Any, members: dict[str, tuple[Read, Any]]) -> dict[str, Any]:
    """An inline table whose members may all be left out. Every mistake is told."""
    if not isinstance(value, dict):
        example = ", ".join(f"{name} = …" for name in members)
        raise Wrong(f"{say(value)} is not a table", f"write {{ {example} }}")
    wrong = Wrong("", "")
    wrong.findings.clear()
    for name in value:
        if name not in members:
            near = difflib.get_close_matches(name, members, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(members)}"
            wrong.findings.append(((name,), "unknown key", remedy))
    found: dict[str, Any] = {}
    for name, (read, default) in members.items():
        try:
            found[name] = read(value.get(name, default))
        except Wrong as error:
            wrong.findings += [((name, *at), *rest) for at, *rest in error.findings]  # type: ignore[misc]
    if wrong.findings:
        raise wrong
    return found


def _read_delimiters(value: Any) -> str:
    if not isinstance(value, str) or re.search(r'[^!-~]|[A-Za-z0-9."\\@]', value):
        raise Wrong(
            f"{say(value)} is no set of delimiters",
            'write printable ASCII characters such as "+-", but no letters, digits, . " \\ @',
        )
    return "".join(dict.fromkeys(value))


def read_fold(value: Any) -> Fold:
    """How local parts are read."""
    return Fold(
        **_read_members(
            value,
            {
                "case": (read_choice("lower", "preserve"), "lower"),
                "delimiters": (_read_delimiters, "+"),
                "dots": (read_choice("keep", "drop"), "keep"),
            },
        )
    )


def read_local_part(value: Any) -> str:
    """The content of one local part."""
    text = read_text(value)
    try:
        content = unquote_local_part(text)
    except AddressError:
        content = ""
    if not content or "@" in text or len(content.encode()) > MAX_LOCAL_OCTETS:
        raise Wrong(f"{say(value)} is no local part", 'write what stands before the "@"')
    return content


def read_rules(value: Any) -> tuple[RosterRule, ...]:
    """Rules in their order, shipped ones by name."""
    found: tuple[tuple[RosterRule, ...], ...] = read_list(_read_rule)(value)
    rules = tuple(rule for some in found for rule in some)
    if len(rules) > MAX_RULES:
        raise Wrong(f"{len(rules)} rules", f"{MAX_RULES} are allowed; join some by |")
    return rules


def _read_rule(value: Any) -> tuple[RosterRule, ...]:
    if isinstance(value, str):
        if value == "subaddresses":
            raise Wrong("subaddresses need no rule", 'write fold = { delimiters = "+" } instead')
        if value not in SHIPPED_RULES:
            raise Wrong(
                f"there is no shipped rule {say(value)}",
                f"there are {', '.join(SHIPPED_RULES)}; write your own as {{ match, action }}",
            )
        return SHIPPED_RULES[value]
    members = _read_members(
        value,
        {
            "match": (read_text, ""),
            "action": (read_choice("accept", "reject", "trap", "defer"), None),
            "note": (lambda note: note if note == "" else read_text(note), ""),
        },
    )
    if not members["note"]:
        del members["note"]
    rule = RosterRule(**members)
    try:
        compile_rules([rule])
    except RosterRefused as error:
        raise Wrong(
            f"{say(rule.match)}: {error.detail.removeprefix('rule 1: ')}",
            "write a pattern for RE2 (github.com/google/re2/wiki/Syntax)",
        ) from error
    return (rule,)


def make_trap_rules(traps: tuple[str, ...]) -> tuple[RosterRule, ...]:
    """Rules for a list of honeypots, as few as their length allows; case does not count."""
    rules: list[RosterRule] = []
    pattern = ""
    for trap in traps:
        literal = re.sub(r"([^A-Za-z0-9_\x80-\U0010ffff-])", r"\\\1", trap)
        longer = f"{pattern}|{literal}" if pattern else literal
        if len(f"(?i)(?:{longer})".encode()) > MAX_PATTERN_OCTETS:
            rules.append(RosterRule(match=f"(?i)(?:{pattern})", action="trap"))
            longer = literal
        pattern = longer
    if pattern:
        rules.append(RosterRule(match=f"(?i)(?:{pattern})", action="trap"))
    return tuple(rules)


def _read_cost(value: Any) -> int:
    cost: int = read_count(1 << 10, 1 << 16)(value)
    if cost & (cost - 1):
        raise Wrong(f"{cost} is no power of two", "write 1024, 2048, … 16384, 32768 or 65536")
    return cost


def read_digest(value: Any) -> DigestChoice:
    """How digests are made."""
    if value in ("hmac-sha256", "scrypt"):
        value = {"scheme": value}
    members = _read_members(
        value,
        {
            "scheme": (read_choice("hmac-sha256", "scrypt"), "hmac-sha256"),
            "bytes": (read_count(16, 32), 16),
            "n": (_read_cost, 16384),
            "p": (read_count(1, 4), 1),
        },
    )
    if members["scheme"] != "scrypt" and isinstance(value, dict) and ("n" in value or "p" in value):
        raise Wrong("n and p belong to scrypt", 'write scheme = "scrypt" or leave them out')
    return DigestChoice(**members)


def read_decoys(value: Any) -> DecoyChoice:
    """How the count is padded."""
    return DecoyChoice(
        **_read_members(
            value,
            {
                "percent": (read_count(0, 1000), 0),
                "multiple": (read_count(1, 10_000_000), 1),
            },
        )
    )


def read_limits(value: Any) -> RosterLimits:
    """What the primary takes."""
    members = _read_members(
        value,
        {
            "max_message_size": (read_size("1KiB", "1TiB"), "50MiB"),
            "smtputf8": (read_flag, True),
            "8bitmime": (read_flag, True),
        },
    )
    return RosterLimits(
        max_message_bytes=members["max_message_size"],
        smtputf8=members["smtputf8"],
        eight_bit_mime=members["8bitmime"],
    )


def read_policy(value: Any) -> RosterPolicy:
    """What the primary wishes of its backups."""
    return RosterPolicy(
        **_read_members(
            value,
            {
                "blocking": (read_choice("allowed", "forbidden"), "allowed"),
                "when_stale": (read_choice("defer", "hold"), "defer"),
            },
        )
    )


def _read_mx_record(value: Any) -> tuple[int, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise Wrong(f"{say(value)} is no MX record", 'write [10, "mx1.example.com"]')
    return read_count(0, 65535)(value[0]), read_domain(value[1])


def read_mx(value: Any) -> tuple[tuple[int, str], ...]:
    """The MX set, by preference."""
    records: tuple[tuple[int, str], ...] = read_list(_read_mx_record)(value)
    return tuple(sorted(records))


def read_local_place(value: Any) -> Path | Endpoint:
    """Where programs of this host connect to: "unix:PATH", a path, or a loopback address."""
    text = read_text(value)
    path = text.removeprefix("unix:")
    if path != text or "/" in text:
        if not Path(path).name:
            raise Wrong(f"{say(value)} names no socket", 'write it like "unix:/run/posthouse/x"')
        return Path(path)
    place: Endpoint = read_endpoint()(text)
    if not ip_address(place.address).is_loopback:
        raise Wrong(
            f"{say(value)} can be reached from outside",
            'anybody could ask there: use "unix:PATH" or a loopback address',
        )
    return place

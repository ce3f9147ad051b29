"""`posthouse roster inspect|test`: look into a roster file, and ask it about an address."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from posthouse.cli.main import EX_NOTHING, config_option, find_either_config
from posthouse.cli.roster_side import NoRoster, RosterSide, open_side
from posthouse.cli.texts import tell_size
from posthouse.config_pairs import load_primary_pairing
from posthouse.domain.digests import make_digest
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.roster import RosterReader
from posthouse.domain.verdict import WhenUnknown, decide_recipient
from posthouse.errors import AddressError, ConfigError, RosterRefused, StorageError
from posthouse.log_sink import clean
from posthouse.mail.address import parse_path
from posthouse.mail.roster import RosterHeader
from posthouse.mail.wire_text import parse_time
from posthouse.node_process import clock_us
from posthouse.node_rosters import make_keys
from posthouse.ports_roster import RosterKeys
from posthouse.proto import roster_delta
from posthouse.proto.roster_file import MAX_HEAD_BYTES, BodyCheck, Head, parse_head
from posthouse.storage.roster_body import RosterBody, read_pieces
from posthouse.storage.roster_intake import check_whole, find_roster_key

_SHOWN_RULES: Final = 10

pairing_option = click.option(
    "--pairing",
    "pairing_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The primary's pairing file: signature and postmaster are checked with its keys.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


# --------------------------------------------------------------------------- inspect


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@pairing_option
@json_option
@click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False),
    envvar="POSTHOUSE_CONFIG", help="Configuration file; its pairings have the keys, if any has.",
)  # fmt: skip
def inspect(file: Path, pairing_file: Path | None, as_json: bool, config_file: Path | None) -> int:
    """Show what a roster or delta FILE says, and what is wrong with it.

    Exit code 1 when something is. Without keys, signature and postmaster are not checked.
    """
    document = _inspect(file, pairing_file, config_file)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join(_tell(document)))
    return EX_NOTHING if document["problems"] else 0


def _inspect(file: Path, pairing_file: Path | None, config_file: Path | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "file": str(file),
        "kind": "roster",
        "size": file.stat().st_size,
        "checked_with": None,
        "problems": [],
    }
    problems: list[str] = document["problems"]
    with file.open("rb") as stream:
        data = stream.read(roster_delta.MAX_DELTA_HEAD_BYTES)
    try:
        if data.startswith(roster_delta.MAGIC):
            delta = roster_delta.parse_delta_head(data)
            document["kind"] = "delta"
            document["changes"] = {
                "from_serial": delta.from_serial,
                "removed": delta.removed,
                "added": delta.added,
            }
            head = delta.new
            if document["size"] != delta.file_bytes:
                problems.append(f"length: {document['size']} octets, not {delta.file_bytes}")
        else:
            head = parse_head(data[:MAX_HEAD_BYTES])
    except RosterRefused as error:
        problems.append(f"{error.check}: {error.detail}")
        return document
    document["header"] = msgspec.to_builtins(head.header)
    keys = _find_keys(head.header, pairing_file, config_file)
    document["checked_with"] = keys.party if keys is not None else None
    if document["kind"] == "roster":
        problems += _check(file, head, keys)
    if parse_time(head.header.expires_at) * 1_000_000 <= clock_us():
        problems.append(f"times: expired at {head.header.expires_at}")
    return document


def _check(file: Path, head: Head, keys: RosterKeys | None) -> Iterator[str]:
    try:
        if keys is not None:
            check_whole(file, keys, None, now_s=None)
            return
        if file.stat().st_size != head.file_bytes:
            raise RosterRefused("length", f"not {head.file_bytes} octets long")
        check = BodyCheck(head.header)
        with file.open("rb") as stream:
            width = head.header.digest.length
            for piece in read_pieces(stream.fileno(), head.body_offset, head.file_bytes, width):
                check.feed(piece)
        check.finish()
    except RosterRefused as error:
        yield f"{error.check}: {error.detail}"
    except StorageError as error:
        yield error.detail


def _find_keys(
    header: RosterHeader, pairing_file: Path | None, config_file: Path | None
) -> RosterKeys | None:
    """Of the pairing named, else of one in the configuration that has the domain."""
    if pairing_file is not None:
        return make_keys(header.domain, load_primary_pairing(pairing_file))
    try:
        return open_side(find_either_config(config_file)).find_keys(header.domain)
    except ConfigError:
        if config_file is not None:
            raise
        return None


def _tell(document: dict[str, Any]) -> Iterator[str]:
    yield f"{document['file']}: {document['kind']}, {tell_size(document['size'])}"
    header = document.get("header")
    if header is not None:
        yield from _tell_header(header)
    changes = document.get("changes")
    if changes is not None:
        yield (
            f"  changes     {changes['removed']:,} removed, {changes['added']:,} added "
            f"since {changes['from_serial']}"
        )
    for problem in document["problems"]:
        yield f"  WRONG       {problem}"
    if not document["problems"]:
        whose = document["checked_with"]
        checks = f"all, with the keys of {whose}" if whose else "all but signature and postmaster"
        yield f"  checked     {checks}"


def _tell_header(header: dict[str, Any]) -> Iterator[str]:
    digest, fold, limits = header["digest"], header["fold"], header["limits"]
    cost = f" n={digest['n']} p={digest['p']}" if "n" in digest else ""
    yield f"  domain      {header['domain']}, serial {header['serial']}"
    yield f"  valid       {header['issued_at']} to {header['expires_at']}"
    yield f"  entries     {header['body']['count']:,}" + ", catch-all" * header["catch_all"]
    key = digest["key_id"]
    yield f"  digest      {digest['scheme']}{cost}, {digest['bytes']} octets, key {key}"
    yield (
        f"  fold        case {fold['case']}, delimiters {fold['delimiters'] or 'none'}, "
        f"dots {fold['dots']}"
    )
    yield (
        f"  takes       {tell_size(limits['max_message_bytes'])}"
        + ", SMTPUTF8" * limits["smtputf8"]
        + ", 8BITMIME" * limits["8bitmime"]
    )
    policy = header["policy"]
    yield f"  policy      blocking {policy['blocking']}, when stale {policy['when_stale']}"
    yield f"  signed by   {header['publisher']['party']}, key {header['publisher']['key_id']}"
    for rule in header["rules"][:_SHOWN_RULES]:
        yield f"  rule        {rule['action']:<8}{clean(rule['match'])}"
    if len(header["rules"]) > _SHOWN_RULES:
        yield f"              and {len(header['rules']) - _SHOWN_RULES} more rules"


# --------------------------------------------------------------------------- test


@click.command(name="test")
@click.argument("address")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ask this roster file instead of the one in force; needs --pairing or a configuration.",
)
@pairing_option
@json_option
@config_option
def try_address(
    address: str,
    file: Path | None,
    pairing_file: Path | None,
    as_json: bool,
    config_file: Path | None,
) -> int:
    """Show what the roster in force says of ADDRESS, and the reply it would get.

    On a backup (posthouse.toml) the roster that was fetched, on a primary (primary.toml)
    the one that was made. Exit code 1 when mail for it would not be accepted.
    """
    try:
        mailbox = parse_path(os.fsencode(address), utf8=True)
    except AddressError as error:
        raise click.UsageError(f"{address!r}: {error.detail}") from error
    if mailbox is None:
        raise click.UsageError("the null path is no mailbox")
    side = None
    if file is None or pairing_file is None:
        side = open_side(find_either_config(config_file))
    body, keys = _open_roster(mailbox.domain, file, pairing_file, side)
    try:
        header = body.head.header
        if header.domain != mailbox.domain:
            raise click.UsageError(f"{file} is about {header.domain}")
        answer = _ask(body, find_roster_key(header, keys), mailbox.local)
    except RosterRefused as error:
        raise click.ClickException(error.detail) from error
    finally:
        body.close()
    when_unknown = WhenUnknown.DEFER if side is None else side.find_when_unknown(mailbox.domain)
    verdict = decide_recipient(answer, mailbox.spelled, mailbox.domain, when_unknown)
    marks = ["held until somebody vouches"] * verdict.hold + ["marked as a trap"] * verdict.trap
    found = "digest" if answer.canonical else answer.finding.value
    if as_json:
        told = {
            "address": mailbox.spelled,
            "finding": found,
            "canonical": answer.canonical,
            "serial": answer.serial,
            "stale": answer.stale,
            "reply": str(verdict.reply),
            "marks": marks,
        }
        click.echo(json.dumps(told, indent=2))
    else:
        stale = ", stale" if answer.stale else ""
        canonical = f" of {answer.canonical}" if answer.canonical else ""
        click.echo(f"{found}{canonical} (roster {answer.serial}{stale})")
        click.echo(", ".join((str(verdict.reply), *marks)))
    return 0 if verdict.reply.positive else EX_NOTHING


def _open_roster(
    domain: str, file: Path | None, pairing_file: Path | None, side: RosterSide | None
) -> tuple[RosterBody, RosterKeys]:
    """The roster to ask, and what it is read with."""
    if pairing_file is not None:
        keys = make_keys(domain, load_primary_pairing(pairing_file))
    else:
        assert side is not None
        found = side.find_keys(domain)
        if found is None:
            raise click.ClickException(f"{domain} has no roster configured")
        keys = found
    try:
        if file is not None:
            return RosterBody(file, None), keys
        assert side is not None
        return side.open_in_force(domain), keys
    except (StorageError, NoRoster) as error:
        raise click.ClickException(error.detail) from error


def _ask(body: RosterBody, roster_key: bytes, content: str) -> Answer:
    header = body.head.header
    reader, digest = RosterReader(header), make_digest(header.digest, roster_key)
    finding, canonical = reader.find_early(content), ""
    if finding is None:
        for text in reader.find_texts(content):
            if text and body.holds(digest(text)):
                finding, canonical = Finding.VOUCHED, text
                break
    return Answer(
        finding=finding or reader.otherwise,
        stale=reader.is_stale(clock_us() // 1_000_000),
        canonical=canonical,
        serial=header.serial,
        when_stale=header.policy.when_stale,
    )

"""Makes and takes pairing files: what `posthouse pair` does, without its words.

What we give away is written once, with its secrets, for the other side; what
we keep of it has hashes of tokens only. An offer is accepted once: the hash of
its token is remembered. A rotation adds a second credential to what we keep, so
that both are good until the other side has shown the new one (`services.parties`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

import msgspec

from posthouse.cli.pair_side import Side, find_pin
from posthouse.config_pairs import USED_TOKENS_FILE, load_own_pairing
from posthouse.errors import ConfigError, StorageBroken
from posthouse.mail.wire_text import decode_base64url, encode_base64url
from posthouse.proto import signing
from posthouse.proto.pairing import (
    KEY_BYTES,
    MAX_CREDENTIALS,
    BackupPairing,
    Credential,
    OwnPairing,
    PrimaryPairing,
    check_party,
    find_kind,
    format_backup_pairing,
    format_own_pairing,
    format_primary_pairing,
    hash_token,
    parse_backup_pairing,
    parse_primary_pairing,
)
from posthouse.services.parties import find_first_valid
from posthouse.storage.pairs import UsedHashes, read_private, write_private

TOKEN_BYTES: Final = 32
ACCEPTED_FILE: Final = "accepted.used"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What was made. carry: the file for the other side; own: what we keep."""

    carry: Path
    own: Path
    pinned: bool
    rotated: bool
    domains: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What was taken. theirs: where it lies now; own: our file for them, None before an offer.

    owner: who owns the domains, where that is not they but another primary of ours.
    """

    party: str
    theirs: Path
    own: Path | None
    rotated: bool
    domains: tuple[str, ...]
    owner: str = ""


def _mistake(text: str) -> ConfigError:
    return ConfigError([text])


# --------------------------------------------------------------------------- offering


def make_offer(
    side: Side,
    partner: str,
    *,
    carry: Path,
    pin: bool | None = None,
    domains: tuple[str, ...] = (),
    rotate: bool = False,
    replace: bool = False,
) -> Offer:
    """Make the file for `partner` and keep what we need of it. Raises ConfigError, OSError.

    pin: of our certificate; None: as before, and at first when nobody vouches for it.
    """
    try:
        check_party(partner)
        check_party(side.party)
    except ValueError as error:
        raise _mistake(f"{error}") from error
    if partner == side.party:
        raise _mistake(f"--to: {partner} is us")
    _prepare(side)
    own_path = find_own(side, partner)
    before = load_own_pairing(own_path, side.kind) if own_path is not None else None
    if before is not None and not (rotate or replace):
        raise _mistake(
            f"{own_path}: an offer for {partner} was made already; --rotate makes new keys "
            "while the old ones stay good, --replace makes the old ones void"
        )
    if before is None and rotate:
        raise _mistake(f"there is no offer for {partner} to rotate; leave --rotate out")
    if rotate and before is not None:
        if not side.url_is_given:
            side = dataclasses.replace(side, base_url=before.base_url)
        if pin is None and before.tls_spki_sha256 is not None:
            pin = True
    spki = find_pin(side, wanted=pin)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    roster_key = secrets.token_bytes(KEY_BYTES) if side.kind == "primary" else None
    kept = _keep(side, before) if before is not None and rotate else ()
    chosen = _choose_domains(side, domains, before)
    own = OwnPairing(
        kind=side.kind,
        party=side.party,
        base_url=side.base_url,
        credentials=(*kept, Credential(token_sha256=hash_token(token), roster_key=roster_key)),
        domains=chosen,
        public_key=_get_public_key(side, chosen) if side.kind == "primary" else None,
        tls_spki_sha256=spki,
        partner=partner,
    )
    document = _format_offer(own, token, roster_key)
    target = own_path or _choose_own(side, partner)
    former = read_private(target) if own_path is not None else None
    # What we keep comes first: an offer that we do not know is worth nothing.
    _write(side, target, format_own_pairing(own), replace=former is not None)
    try:
        write_private(carry, document, replace=False)
    except BaseException:
        if former is None:
            target.unlink()
        else:
            write_private(target, former, replace=True)
        raise
    return Offer(
        carry=carry,
        own=target,
        pinned=spki is not None,
        rotated=rotate,
        domains=own.domains,
    )


def _format_offer(own: OwnPairing, token: str, roster_key: bytes | None) -> bytes:
    if own.kind == "backup":
        return format_backup_pairing(
            BackupPairing(
                party=own.party,
                base_url=own.base_url,
                token=token,
                tls_spki_sha256=own.tls_spki_sha256,
            )
        )
    assert own.public_key is not None
    assert roster_key is not None
    return format_primary_pairing(
        PrimaryPairing(
            party=own.party,
            base_url=own.base_url,
            public_key=own.public_key,
            roster_key=roster_key,
            token=token,
            domains=own.domains,
            tls_spki_sha256=own.tls_spki_sha256,
        )
    )


def _keep(side: Side, before: OwnPairing) -> tuple[Credential, ...]:
    """The credentials that are still good; no more than there is room for."""
    uses: Container[bytes] = frozenset()
    if side.data_dir is not None:
        with contextlib.suppress(StorageBroken):
            uses = UsedHashes(side.data_dir / USED_TOKENS_FILE)
    hashes = [one.token_sha256 for one in before.credentials]
    valid = before.credentials[find_first_valid(hashes, uses) :]
    if len(valid) >= MAX_CREDENTIALS:
        raise _mistake(
            f"{len(valid)} offers for {before.partner} were made and not used; let them "
            "accept the last one, or use --replace"
        )
    return valid


def _choose_domains(
    side: Side, given: tuple[str, ...], before: OwnPairing | None
) -> tuple[str, ...]:
    """Which domains it is for: those named, those of before, else all of ours."""
    if side.kind == "backup":
        return ()
    domains = given or (before.domains if before is not None else side.domains)
    if not domains:
        raise _mistake(f"{side.file}: has no [[domain]]; add one or use --domain")
    unknown = [name for name in domains if side.domains and name not in side.domains]
    if unknown:
        raise _mistake(f"{side.file}: has no [[domain]] {', '.join(unknown)}")
    return domains


def _get_public_key(side: Side, domains: tuple[str, ...]) -> bytes:
    """Of the key that signs the rosters: ours, made when there is none, or the owner's."""
    if not side.owned:
        return _find_owners_key(side, domains)
    path = side.signing_key
    if path is None:
        raise _mistake(f"{side.file}: has no data_dir; add it")
    try:
        private_key = decode_base64url(read_private(path).decode("ascii").strip())
        return signing.derive_public_key(private_key)
    except FileNotFoundError:
        private_key = signing.generate_private_key()
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
            _hand_over(side, path.parent)
        _write(side, path, f"{encode_base64url(private_key)}\n".encode(), replace=False)
        return signing.derive_public_key(private_key)
    except (ValueError, UnicodeDecodeError) as error:
        raise _mistake(f"{path}: no private key: {error}") from error


def _find_owners_key(side: Side, domains: tuple[str, ...]) -> bytes:
    """Of the primary that we are paired with for these domains."""
    found = {
        owner.public_key for owner in _read_primaries(side) if set(domains) <= set(owner.domains)
    }
    if len(found) != 1:
        raise _mistake(
            f"{side.pairs}: {len(found) or 'no'} pairing files of primaries have all of "
            f"{', '.join(domains)}; pair with the owner first, or name fewer with --domain"
        )
    return found.pop()


def _read_primaries(side: Side) -> Iterator[PrimaryPairing]:
    """What primaries gave us."""
    for path in sorted(side.pairs.glob("*.json")):
        try:
            yield parse_primary_pairing(read_private(path))
        except (ValueError, OSError):
            continue  # our own files lie here too


# --------------------------------------------------------------------------- accepting


def accept_offer(
    side: Side, file: Path, *, rotate: bool = False, replace: bool = False
) -> Acceptance:
    """Take what the other side made, once. Raises ConfigError, OSError."""
    _prepare(side)
    try:
        data = read_private(file)
        kind = find_kind(data)
        theirs = parse_primary_pairing(data) if kind == "primary" else parse_backup_pairing(data)
    except ValueError as error:
        raise _mistake(f"{file}: no usable pairing file: {error}") from error
    if kind == side.kind:
        hint = "; do they back up behind us? then --behind" if kind == "backup" else ""
        raise _mistake(
            f"{file}: is the file of a {kind}, and so are we: it is for the other side{hint}"
        )
    if theirs.party == side.party:
        raise _mistake(f"{file}: names us ({side.party}) as the other side")
    used = UsedHashes(side.pairs / ACCEPTED_FILE)
    digest = hash_token(theirs.token)
    if digest in used:
        raise _mistake(
            f"{file}: was accepted before, and is good once; ask for a new one (pair offer)"
        )
    path = side.pairs / f"{theirs.party}.json"
    exists = path.exists()
    if exists and not (rotate or replace):
        raise _mistake(
            f"{path}: there is a pairing with {theirs.party} already; use --rotate when they "
            "made new keys, --replace when they began anew"
        )
    if exists and rotate and isinstance(theirs, PrimaryPairing):
        theirs = _merge(path, theirs)
    document = (
        format_primary_pairing(theirs)
        if isinstance(theirs, PrimaryPairing)
        else format_backup_pairing(theirs)
    )
    _write(side, path, document, replace=exists)
    used.add(digest)
    _hand_over(side, side.pairs / ACCEPTED_FILE)
    return Acceptance(
        party=theirs.party,
        theirs=path,
        own=find_own(side, theirs.party),
        rotated=exists and rotate,
        domains=theirs.domains if isinstance(theirs, PrimaryPairing) else (),
        owner=_find_owner(side, theirs) if isinstance(theirs, PrimaryPairing) else "",
    )


def _find_owner(side: Side, theirs: PrimaryPairing) -> str:
    """The other primary of ours whose key signs the rosters of these domains, "" for none."""
    for other in _read_primaries(side):
        if other.party != theirs.party and other.public_key == theirs.public_key:
            return other.party
    return ""


def _merge(path: Path, fresh: PrimaryPairing) -> PrimaryPairing:
    """A rotated pairing: the roster key of before stays good. Raises ConfigError."""
    try:
        before = parse_primary_pairing(read_private(path))
    except ValueError as error:
        raise _mistake(f"{path}: {error}; use --replace") from error
    if before.public_key != fresh.public_key:
        raise _mistake(
            f"the key that signs the rosters of {fresh.party} is another one: ask them "
            "whether they changed it, then use --replace"
        )
    former = tuple(key for key in before.roster_keys if key != fresh.roster_key)[:1]
    return msgspec.structs.replace(fresh, former_roster_keys=former)


# --------------------------------------------------------------------------- files


def find_own(side: Side, partner: str) -> Path | None:
    """Our own file for that partner, None when no offer was made."""
    for path in _own_places(side, partner):
        if not path.exists():
            continue
        own = load_own_pairing(path, side.kind)
        if own.partner in ("", partner) and own.party == side.party:
            return path
    return None


def _choose_own(side: Side, partner: str) -> Path:
    """The first place that is free."""
    return next(path for path in _own_places(side, partner) if not path.exists())


def _own_places(side: Side, partner: str) -> tuple[Path, ...]:
    """pairs/<us>.json, as in the manual; for a second partner one that names it."""
    named = side.pairs / f"{side.party}-for-{partner}.json"
    return (side.pairs / f"{side.party}.json", named) if side.owned else (named,)


def _prepare(side: Side) -> None:
    if not side.pairs.is_dir():
        side.pairs.mkdir(mode=0o700)
        _hand_over(side, side.pairs)


def _write(side: Side, path: Path, data: bytes, *, replace: bool) -> None:
    write_private(path, data, replace=replace)
    if not replace:
        _hand_over(side, path)


def _hand_over(side: Side, path: Path) -> None:
    """Give it to who runs the node: it reads it again on SIGHUP."""
    if side.account is not None and os.geteuid() == 0:
        os.chown(path, side.account.pw_uid, side.account.pw_gid, follow_symlinks=False)

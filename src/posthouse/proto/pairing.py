"""Pairing documents and the URLs they allow (PROTOCOL.md §1).

Out of band, once, each side hands the other one small JSON file. What a side
keeps of its *own* file is another thing: it holds only hashes of the tokens
it gave out, and, while a rotation is under way, two of them. A reader of own
files takes a plain pairing document too, so that a file written by hand, or by
another implementation, serves on both sides.

Everything is checked or refused: ValueError says what is wrong, in words for
the person who was sent the file. Nothing secret shows in a repr.
Spec: PROTOCOL.md §0, §1; RFC 3986, RFC 6750 §2.1 (token), RFC 7493.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final, Literal

import msgspec

from posthouse.errors import AddressError, DocumentError
from posthouse.mail.address import normalize_domain
from posthouse.mail.wire_text import decode_base64url, encode_base64url
from posthouse.proto import ijson
from posthouse.proto.base_url import parse_base_url

KEY_BYTES: Final = 32
# Far more than any pairing needs: a thousand domains of 255 octets.
MAX_DOCUMENT_BYTES: Final = 512 * 1024
MAX_CREDENTIALS: Final = 8

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*\Z")
_PARTY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_HEX_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")

Kind = Literal["primary", "backup"]
"""Whose document it is: that of the side that owns the mailboxes, or of its backup."""


class PrimaryPairing(msgspec.Struct, frozen=True, kw_only=True):
    """What a primary gives its backup. The token is what the backup presents.

    public_key: Ed25519, raw; roster_key: 32 octets. former_roster_keys: still valid while
    a rotation is under way, newest first (our own addition to the file: a reader that
    does not know it ignores it). tls_spki_sha256 None: chain and name are verified.
    """

    party: str
    base_url: str
    public_key: bytes
    roster_key: bytes
    token: str
    domains: tuple[str, ...]
    tls_spki_sha256: bytes | None = None
    former_roster_keys: tuple[bytes, ...] = ()

    @property
    def roster_keys(self) -> tuple[bytes, ...]:
        """Every key a roster may be made with; its `key_id` picks."""
        return (self.roster_key, *self.former_roster_keys)

    def __repr__(self) -> str:
        return f"PrimaryPairing({self.party} at {self.base_url} for {', '.join(self.domains)})"


class BackupPairing(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup gives its primary. party: its forwarder-ID; token: the primary presents it."""

    party: str
    base_url: str
    token: str
    tls_spki_sha256: bytes | None = None

    def __repr__(self) -> str:
        return f"BackupPairing({self.party} at {self.base_url})"


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """One token we gave out, by its hash, and the roster key that went with it (primary only)."""

    token_sha256: bytes
    roster_key: bytes | None = None

    def __repr__(self) -> str:
        return f"Credential({self.token_sha256.hex()[:8]}…)"


class OwnPairing(msgspec.Struct, frozen=True, kw_only=True):
    """What we keep of the document we gave to one other side. credentials: oldest first.

    partner: whom it was made for, "" when that is not known. domains, public_key: () and
    None for a backup's. Once a credential has been used, older ones are void.
    """

    kind: Kind
    party: str
    base_url: str
    credentials: tuple[Credential, ...]
    domains: tuple[str, ...] = ()
    public_key: bytes | None = None
    tls_spki_sha256: bytes | None = None
    partner: str = ""

    def __repr__(self) -> str:
        return f"OwnPairing({self.kind} {self.party}, {len(self.credentials)} credentials)"


# --------------------------------------------------------------------------- reading


def parse_primary_pairing(data: bytes) -> PrimaryPairing:
    """Read what a primary sent. Raises ValueError with what is wrong."""
    members = _decode(data)
    return PrimaryPairing(
        party=_read_party(members),
        base_url=_read_base_url(members),
        public_key=_read_key(members, "public_key"),
        roster_key=_read_key(members, "roster_key"),
        token=_read_token(members),
        domains=_read_domains(members),
        tls_spki_sha256=_read_pin(members),
        former_roster_keys=tuple(
            _decode_key("former_roster_keys", text)
            for text in _read_optional_texts(members, "former_roster_keys")
        ),
    )


def parse_backup_pairing(data: bytes) -> BackupPairing:
    """Read what a backup sent. Raises ValueError with what is wrong."""
    members = _decode(data)
    return BackupPairing(
        party=_read_party(members),
        base_url=_read_base_url(members),
        token=_read_token(members),
        tls_spki_sha256=_read_pin(members),
    )


def parse_own_pairing(data: bytes, kind: Kind) -> OwnPairing:
    """Read our own file, ours or a plain pairing document. Raises ValueError."""
    members = _decode(data)
    is_primary = kind == "primary"
    return OwnPairing(
        kind=kind,
        party=_read_party(members),
        base_url=_read_base_url(members),
        credentials=_read_credentials(members, is_primary),
        domains=_read_domains(members) if is_primary else (),
        public_key=_read_key(members, "public_key") if is_primary else None,
        tls_spki_sha256=_read_pin(members),
        partner=_read_text(members, "partner") if "partner" in members else "",
    )


def check_party(name: str) -> str:
    """Give back the name of a party. Raises ValueError when it cannot be one."""
    if _PARTY.match(name) is None:
        raise ValueError('party is not a name like "mx2.example.net"')
    return name


def find_kind(data: bytes) -> Kind:
    """Tell whose pairing document it is: only a primary's has keys. Raises ValueError."""
    members = _decode(data)
    return "primary" if "roster_key" in members or "public_key" in members else "backup"


# --------------------------------------------------------------------------- writing


def format_primary_pairing(pairing: PrimaryPairing) -> bytes:
    """The document for the backup, members in the order of PROTOCOL.md."""
    former = [encode_base64url(key) for key in pairing.former_roster_keys]
    return _encode(
        {
            "party": pairing.party,
            "base_url": pairing.base_url,
            "public_key": encode_base64url(pairing.public_key),
            "roster_key": encode_base64url(pairing.roster_key),
            "token": pairing.token,
            "domains": list(pairing.domains),
            **_pin_member(pairing.tls_spki_sha256),
            **({"former_roster_keys": former} if former else {}),
        }
    )


def format_backup_pairing(pairing: BackupPairing) -> bytes:
    """The document for the primary, members in the order of PROTOCOL.md."""
    return _encode(
        {
            "party": pairing.party,
            "base_url": pairing.base_url,
            "token": pairing.token,
            **_pin_member(pairing.tls_spki_sha256),
        }
    )


def format_own_pairing(own: OwnPairing) -> bytes:
    """Our own file: no token in it that anybody could show."""
    members: dict[str, Any] = {"party": own.party, "base_url": own.base_url}
    if own.kind == "primary":
        assert own.public_key is not None
        members["public_key"] = encode_base64url(own.public_key)
        members["domains"] = list(own.domains)
    members.update(_pin_member(own.tls_spki_sha256))
    if own.partner:
        members["partner"] = own.partner
    members["credentials"] = [
        {
            "token_sha256": credential.token_sha256.hex(),
            **(
                {"roster_key": encode_base64url(credential.roster_key)}
                if credential.roster_key is not None
                else {}
            ),
        }
        for credential in own.credentials
    ]
    return _encode(members)


def hash_token(token: str) -> bytes:
    """SHA-256 of a token: all a receiver keeps. Total: any text has a hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


# --------------------------------------------------------------------------- members


def _decode(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"larger than {MAX_DOCUMENT_BYTES} octets; is it a pairing file?")
    try:
        found = ijson.parse(data)
    except DocumentError as error:
        raise ValueError(error.detail) from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _encode(members: dict[str, Any]) -> bytes:
    return (json.dumps(members, indent=2, ensure_ascii=False) + "\n").encode()


def _pin_member(pin: bytes | None) -> dict[str, str]:
    return {} if pin is None else {"tls_spki_sha256": encode_base64url(pin)}


def _read_text(members: dict[str, Any], name: str) -> str:
    if name not in members:
        raise ValueError(f"{name} is missing")
    value = members[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")
    return value


def _read_texts(members: dict[str, Any], name: str) -> list[str]:
    if name not in members:
        raise ValueError(f"{name} is missing")
    value = members[name]
    if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
        raise ValueError(f"{name} is not a list of texts")
    return value


def _read_optional_texts(members: dict[str, Any], name: str) -> list[str]:
    return _read_texts(members, name) if name in members else []


def _read_party(members: dict[str, Any]) -> str:
    return check_party(_read_text(members, "party"))


def _read_base_url(members: dict[str, Any]) -> str:
    text = _read_text(members, "base_url")
    try:
        parse_base_url(text)
    except ValueError as error:
        raise ValueError(f"base_url: {error}") from error
    return text


def _read_token(members: dict[str, Any]) -> str:
    token = _read_text(members, "token")
    if _TOKEN.match(token) is None:
        raise ValueError("token is not one that an Authorization header can carry (RFC 6750 §2.1)")
    return token


def _read_key(members: dict[str, Any], name: str) -> bytes:
    return _decode_key(name, _read_text(members, name))


def _decode_key(name: str, text: str) -> bytes:
    try:
        return decode_base64url(text, KEY_BYTES)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read_pin(members: dict[str, Any]) -> bytes | None:
    return _read_key(members, "tls_spki_sha256") if "tls_spki_sha256" in members else None


def _read_domains(members: dict[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for text in _read_texts(members, "domains"):
        try:
            found.append(normalize_domain(text))
        except AddressError as error:
            raise ValueError(f"domains: {text!r} is not a domain name") from error
    if not found:
        raise ValueError("domains is empty")
    if len(set(found)) != len(found):
        raise ValueError("domains names one twice")
    return tuple(found)


def _read_credentials(members: dict[str, Any], is_primary: bool) -> tuple[Credential, ...]:
    if "credentials" not in members:
        return (
            Credential(
                token_sha256=hash_token(_read_token(members)),
                roster_key=_read_key(members, "roster_key") if is_primary else None,
            ),
        )
    rows = members["credentials"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("credentials is not a list of objects")
    if not 1 <= len(rows) <= MAX_CREDENTIALS:
        raise ValueError(f"credentials has {len(rows)} elements, not 1 to {MAX_CREDENTIALS}")
    found = []
    for row in rows:
        digest = _read_text(row, "token_sha256")
        if _HEX_SHA256.match(digest) is None:
            raise ValueError("token_sha256 is not 64 hex digits")
        key = _read_key(row, "roster_key") if is_primary else None
        found.append(Credential(token_sha256=bytes.fromhex(digest), roster_key=key))
    return tuple(found)

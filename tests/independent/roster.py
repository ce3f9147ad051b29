"""Rosters and deltas, made and read after the protocol's §2. Needs Ed25519 and IDNA."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import itertools
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import idna
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FIRST_LINE = b"posthouse-roster 1\n"
DELTA_FIRST_LINE = b"posthouse-roster-delta 1\n"


class Refused(Exception):
    """The file is not to be put in force; the text names the check."""


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64(raw) != text:
        raise Refused("base64url: padding or unused bits")
    return raw


def key_id(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def stamp(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def unstamp(text: str) -> datetime.datetime:
    parsed = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    if stamp(parsed) != text:
        raise Refused("time")
    return parsed


# ------------------------------------------------------------------ canonical text


def content_of(local_part: str) -> str:
    """The content of a local part as it stands in an address."""
    if local_part.startswith('"') and local_part.endswith('"') and len(local_part) > 1:
        inner = iter(local_part[1:-1])
        local_part = "".join(next(inner) if c == "\\" else c for c in inner)
    return unicodedata.normalize("NFC", local_part)


def fold(content: str, how: dict[str, str], *, cut: bool) -> str:
    if how["case"] == "lower":
        content = unicodedata.normalize("NFC", content.lower())
    first = next(
        (i for i, c in enumerate(content) if i > 0 and c in how["delimiters"]), len(content)
    )
    head, tail = content[:first], content[first:]
    if how["dots"] == "drop":
        head = head.replace(".", "")
    return head if cut else head + tail


def domain_of(address: str) -> str:
    """The domain of an address in A-labels."""
    domain = address.rpartition("@")[2].removesuffix(".")
    return idna.encode(domain, uts46=True, transitional=False).decode().lower()


def text_of(content: str, how: dict[str, str], domain: str, *, cut: bool) -> str:
    return fold(content, how, cut=cut) + "@" + domain


def digest_of(text: str, scheme: dict[str, Any], roster_key: bytes) -> bytes:
    mac = hmac.new(roster_key, text.encode("utf-8"), hashlib.sha256).digest()
    size = scheme["bytes"]
    if scheme["scheme"] == "hmac-sha256":
        return mac[:size]
    return hashlib.scrypt(
        mac,
        salt=unb64(scheme["salt"]),
        n=scheme["n"],
        r=scheme["r"],
        p=scheme["p"],
        dklen=size,
        maxmem=512 * 1024 * 1024,
    )


# ------------------------------------------------------------------ making


def build(
    *,
    domain: str,
    serial: int,
    mailboxes: Iterable[str],
    roster_key: bytes,
    private_key: Ed25519PrivateKey,
    party: str,
    issued: datetime.datetime,
    days: float = 7.0,
    members: dict[str, Any] | None = None,
) -> bytes:
    """Make a whole file. members: header members that take the place of the plain ones."""
    header: dict[str, Any] = {
        "domain": domain,
        "serial": serial,
        "issued_at": stamp(issued),
        "expires_at": stamp(issued + datetime.timedelta(days=days)),
        "refresh_seconds": 3600,
        "digest": {"scheme": "hmac-sha256", "bytes": 16, "key_id": key_id(roster_key)},
        "fold": {"case": "lower", "delimiters": "+", "dots": "keep"},
        "catch_all": False,
        "rules": [],
        "limits": {"max_message_bytes": 52428800, "smtputf8": True, "8bitmime": True},
        "policy": {"blocking": "allowed", "when_stale": "defer"},
        "mx": [],
    }
    header.update(members or {})
    digests = {
        digest_of(
            text_of(content_of(local), header["fold"], domain, cut=False),
            header["digest"],
            roster_key,
        )
        for local in (*mailboxes, "postmaster")
    }
    body = b"".join(sorted(digests))
    header["body"] = {"count": len(digests), "sha256": hashlib.sha256(body).hexdigest()}
    public = private_key.public_key().public_bytes_raw()
    header["publisher"] = {"party": party, "key_id": key_id(public)}
    line = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    signature = b64(private_key.sign(FIRST_LINE + line)).encode() + b"\n"
    return FIRST_LINE + line + signature + body


def make_delta(old: bytes, new: bytes) -> bytes:
    """What leads from one file to the other."""
    before, _, was = split(old)
    after, lines, now = split(new)
    removed, added = sorted(set(was) - set(now)), sorted(set(now) - set(was))
    told = {"from_serial": before["serial"], "removed": len(removed), "added": len(added)}
    head = json.dumps(told, separators=(",", ":")).encode() + b"\n"
    assert after["domain"] == before["domain"]
    return DELTA_FIRST_LINE + head + lines + b"".join(removed) + b"".join(added)


def apply_delta(old: bytes, delta: bytes) -> bytes:
    """The new file; raises Refused."""
    first, told_line, rest = delta.split(b"\n", 2)
    if first + b"\n" != DELTA_FIRST_LINE:
        raise Refused("first line")
    told = json.loads(told_line)
    before, _, was = split(old)
    if told["from_serial"] != before["serial"]:
        raise Refused("from_serial")
    header_line, signature_line, body = rest.split(b"\n", 2)
    size = json.loads(header_line)["digest"]["bytes"]
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    removed, added = pieces[: told["removed"]], pieces[told["removed"] :]
    if len(added) != told["added"] or not set(removed) <= set(was) or set(added) & set(was):
        raise Refused("digests")
    digests = sorted((set(was) - set(removed)) | set(added))
    return FIRST_LINE + header_line + b"\n" + signature_line + b"\n" + b"".join(digests)


# ------------------------------------------------------------------ reading


def split(file: bytes) -> tuple[dict[str, Any], bytes, list[bytes]]:
    """Header, the header and signature lines as they stand, the digests."""
    first, header_line, signature, body = file.split(b"\n", 3)
    if first + b"\n" != FIRST_LINE:
        raise Refused("first line")
    header = json.loads(header_line, object_pairs_hook=_no_twice)
    size = header["digest"]["bytes"]
    if len(body) != size * header["body"]["count"]:
        raise Refused("count")
    digests = [body[i : i + size] for i in range(0, len(body), size)]
    return header, header_line + b"\n" + signature + b"\n", digests


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise Refused("header: a member twice")
    return dict(pairs)


def read(
    file: bytes, *, domain: str, roster_key: bytes, public_key: bytes, now: datetime.datetime
) -> tuple[dict[str, Any], list[bytes]]:
    """Check a file as a backup does; raises Refused."""
    header, lines, digests = split(file)
    header_line, signature, _ = lines.split(b"\n")
    if len(signature) != 86:
        raise Refused("signature")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            unb64(signature.decode("ascii")), FIRST_LINE + header_line + b"\n"
        )
    except InvalidSignature:
        raise Refused("signature") from None
    if header["domain"] != domain:
        raise Refused("domain")
    if header["digest"]["key_id"] != key_id(roster_key):
        raise Refused("key_id")
    if header["publisher"]["key_id"] != key_id(public_key):
        raise Refused("publisher")
    issued, expires = unstamp(header["issued_at"]), unstamp(header["expires_at"])
    if issued > now + datetime.timedelta(seconds=300) or not now < expires or expires <= issued:
        raise Refused("times")
    if expires - issued > datetime.timedelta(days=90):
        raise Refused("times")
    if hashlib.sha256(b"".join(digests)).hexdigest() != header["body"]["sha256"]:
        raise Refused("hash")
    if any(a >= b for a, b in itertools.pairwise(digests)):
        raise Refused("order")
    postmaster = text_of("postmaster", header["fold"], domain, cut=False)
    if digest_of(postmaster, header["digest"], roster_key) not in digests:
        raise Refused("postmaster")
    return header, digests


def find(address: str, header: dict[str, Any], digests: list[bytes], roster_key: bytes) -> str:
    """Say "digest", "catch_all" or "absent", rules left out (they need RE2)."""
    local, _, _ = address.rpartition("@")
    content = content_of(local)
    if content.lower() == "postmaster":
        return "digest"
    kept = text_of(content, header["fold"], header["domain"], cut=False)
    short = text_of(content, header["fold"], header["domain"], cut=True)
    for text in dict.fromkeys((kept, short)):
        if text.startswith("@"):
            continue
        if digest_of(text, header["digest"], roster_key) in digests:
            return "digest"
    return "catch_all" if header["catch_all"] else "absent"

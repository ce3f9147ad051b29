"""Pairing files as PROTOCOL.md §1 has them: both sides of one pairing, in one directory."""

from __future__ import annotations

import json
from pathlib import Path

from posthouse.mail.wire_text import encode_base64url
from posthouse.proto import signing

SIGNING_KEY = b"s" * 32
ROSTER_KEY = b"r" * 32
PRIMARY_TOKEN = "what-the-backup-presents"
BACKUP_TOKEN = "what-the-primary-presents"


def write_pairs(
    folder: Path,
    primary: str,
    backup: str,
    *,
    primary_url: str = "https://mail.example.com:8447/",
    backup_url: str = "https://mx2.example.net:8447/",
    domains: tuple[str, ...] = ("example.com",),
    **changes: object,
) -> tuple[Path, Path]:
    """Write PRIMARY.json and BACKUP.json, mode 0600. changes: of members of the former."""
    folder.mkdir(exist_ok=True)
    documents: dict[str, dict[str, object]] = {
        primary: {
            "party": primary,
            "base_url": primary_url,
            "public_key": encode_base64url(signing.derive_public_key(SIGNING_KEY)),
            "roster_key": encode_base64url(ROSTER_KEY),
            "token": PRIMARY_TOKEN,
            "domains": list(domains),
            **changes,
        },
        backup: {"party": backup, "base_url": backup_url, "token": BACKUP_TOKEN},
    }
    paths = []
    for party, document in documents.items():
        path = folder / f"{party}.json"
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        paths.append(path)
    return paths[0], paths[1]

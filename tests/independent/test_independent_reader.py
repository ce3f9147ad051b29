"""The independent primary against itself and against the published examples."""

from __future__ import annotations

import ast
import base64
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from independent import roster

HERE = Path(__file__).parent
VECTORS = json.loads((HERE.parent / "data" / "protocol-vectors.json").read_text("utf-8"))
NOW = roster.unstamp(VECTORS["now"])
KEY = roster.unb64(VECTORS["roster_key"])
PUBLIC = roster.unb64(VECTORS["publisher"]["public_key"])


def read(file: bytes, now: datetime.datetime = NOW) -> tuple[dict[str, Any], list[bytes]]:
    return roster.read(file, domain="coach.example", roster_key=KEY, public_key=PUBLIC, now=now)


def test_it_imports_nothing_of_ours() -> None:
    """The independent primary shares no line with Posthouse."""
    for path in (HERE / "roster.py", HERE / "granter.py", HERE / "__init__.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.partition(".")[0] in ("posthouse", "fakes") for name in names)


@pytest.mark.parametrize("case", VECTORS["addresses"], ids=lambda case: case["why"][:40])
def test_texts_and_digests(case: dict[str, Any]) -> None:
    """Both texts of every example address and their digests are those published."""
    address = bytes.fromhex(case["address_utf8_hex"]).decode()
    content = roster.content_of(address.rpartition("@")[0])
    domain = roster.domain_of(address)
    for form, cut in (("kept", False), ("cut", True)):
        text = roster.text_of(content, case["fold"], domain, cut=cut)
        if case[form] is None:
            continue
        assert text.encode().hex() == case[form]["text_utf8_hex"]
        for name in ("hmac-sha256", "scrypt-1024"):
            digest = roster.digest_of(text, VECTORS["digests"][name], KEY)
            assert digest.hex() == case[form][name]


def test_published_roster_and_delta() -> None:
    """The published files are read, and the delta leads from one to the other."""
    old = base64.b64decode(VECTORS["roster"]["file_base64"])
    header, digests = read(old)
    assert header["serial"] == VECTORS["roster"]["serial"]
    delta = base64.b64decode(VECTORS["delta"]["file_base64"])
    new = roster.apply_delta(old, delta)
    assert new == base64.b64decode(VECTORS["delta"]["result_base64"])
    assert roster.make_delta(old, new) == delta
    for case in VECTORS["lookups"]:
        if case["finding"] in ("digest", "absent"):
            assert roster.find(case["address"], header, digests, KEY) == case["finding"]


@pytest.mark.parametrize("case", VECTORS["damaged"], ids=lambda case: case["reason"][:40])
def test_damaged_files_are_refused(case: dict[str, Any]) -> None:
    """Every published damage is refused by the check that is named for it."""
    with pytest.raises(roster.Refused, match=case["check"]):
        read(base64.b64decode(case["file_base64"]))


def test_build_and_read() -> None:
    """What it builds it reads, with either scheme, and the wrong key is refused."""
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    for scheme in ("hmac-sha256", "scrypt-1024"):
        file = roster.build(
            domain="coach.example",
            serial=5,
            mailboxes=["Alice", '"bob smith"'],
            roster_key=KEY,
            private_key=private,
            party="coach.example",
            issued=NOW,
            members={"digest": VECTORS["digests"][scheme]},
        )
        header, digests = roster.read(
            file, domain="coach.example", roster_key=KEY, public_key=public, now=NOW
        )
        assert roster.find("alice+news@coach.example", header, digests, KEY) == "digest"
        assert roster.find("carol@coach.example", header, digests, KEY) == "absent"
        with pytest.raises(roster.Refused, match="signature"):
            read(file)

"""Two readings of the protocol, ours and the independent one, agree on whatever is thrown at them."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from independent import roster
from posthouse.domain.digests import make_digest
from posthouse.domain.finding import Finding
from posthouse.domain.roster import RosterReader, Trust, check_header
from posthouse.proto import roster_delta, roster_file

NOW = datetime.datetime(2026, 11, 9, 8, tzinfo=datetime.UTC)
KEY = bytes(range(32))
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\7" * 32)
PUBLIC = PRIVATE.public_key().public_bytes_raw()

CHARACTERS = "aAbBzZ019.+-_=#'éÉİßΣσǅZ\u0301\u212b "
CONTENT = st.text(CHARACTERS, min_size=1, max_size=12) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='@"\\'),
    min_size=1,
    max_size=6,
)
FOLDS = st.fixed_dictionaries(
    {
        "case": st.sampled_from(["lower", "preserve"]),
        "delimiters": st.sampled_from(["", "+", "-+", "=_", "#"]),
        "dots": st.sampled_from(["keep", "drop"]),
    }
)
SCHEMES = st.sampled_from(
    [
        {"scheme": "hmac-sha256", "bytes": 16},
        {"scheme": "hmac-sha256", "bytes": 32},
        {"scheme": "scrypt", "n": 1024, "r": 8, "p": 1, "salt": roster.b64(b"s" * 16), "bytes": 17},
    ]
)


def build(contents: list[str], how: dict[str, str], scheme: dict[str, Any], serial: int) -> bytes:
    """A file of the independent primary; contents are quoted where they must be."""
    return roster.build(
        domain="example.com",
        serial=serial,
        mailboxes=[f'"{content}"' for content in contents],
        roster_key=KEY,
        private_key=PRIVATE,
        party="example.com",
        issued=NOW,
        members={"fold": how, "digest": {**scheme, "key_id": roster.key_id(KEY)}},
    )


def read(file: bytes) -> tuple[roster_file.Head, bytes]:
    """Read it with our code, every check done."""
    head = roster_file.parse_head(file)
    assert roster_file.verify_signature(head, PUBLIC)
    trust = Trust(
        domain="example.com",
        party="example.com",
        publisher_key_ids=[roster.key_id(PUBLIC)],
        roster_key_ids=[roster.key_id(KEY)],
    )
    check_header(head.header, trust, now_s=int(NOW.timestamp()))
    body = file[head.body_offset :]
    check = roster_file.BodyCheck(head.header)
    check.feed(body)
    check.finish()
    return head, body


@given(st.lists(CONTENT, max_size=5), st.lists(CONTENT, max_size=8), FOLDS, SCHEMES)
def test_both_find_the_same(
    members: list[str], asked: list[str], how: dict[str, str], scheme: dict[str, Any]
) -> None:
    """Whatever was put in, and whatever is asked, both sides say the same of it."""
    file = build(members, how, scheme, 7)
    header, digests = roster.split(file)[0], roster.split(file)[2]
    head, body = read(file)
    reader = RosterReader(head.header)
    digest = make_digest(head.header.digest, KEY)
    width = scheme["bytes"]
    ours = {body[i : i + width] for i in range(0, len(body), width)}
    for content in (*members, *asked):
        early = reader.find_early(content)
        texts = [text for text in reader.find_texts(content) if text]
        found = early is Finding.VOUCHED or any(digest(text) in ours for text in texts)
        theirs = roster.find(f'"{content}"@example.com', header, digests, KEY)
        assert found is (theirs == "digest"), content


@given(st.lists(CONTENT, max_size=8), st.lists(CONTENT, max_size=8), FOLDS)
def test_deltas_lead_to_the_same_file(
    before: list[str], after: list[str], how: dict[str, str]
) -> None:
    """Either side's delta, applied by either side, gives the new file, octet for octet."""
    scheme = {"scheme": "hmac-sha256", "bytes": 16}
    old, new = build(before, how, scheme, 7), build(after, how, scheme, 8)
    theirs = roster.make_delta(old, new)
    new_head, new_body = read(new)
    _, old_body = read(old)
    removed, added = roster_delta.find_changes(old_body, new_body, 16)
    assert roster_delta.encode_delta(7, new[: new_head.body_offset], removed, added) == theirs
    assert roster.apply_delta(old, theirs) == new
    delta = roster_delta.parse_delta_head(theirs)
    split = delta.digests_offset + delta.removed * 16
    body = b"".join(
        roster_delta.apply_changes(
            old_body, theirs[delta.digests_offset : split], theirs[split:], 16
        )
    )
    assert delta.new.octets + body == new
    assert hashlib.sha256(body).hexdigest() == delta.new.header.body.sha256

"""The examples for the wire text (tests/data/protocol-vectors.json), read once."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final

from posthouse.mail.wire_text import decode_base64url, parse_time

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "protocol-vectors.json").read_text()
)
NOW_S: Final = parse_time(VECTORS["now"])
DOMAIN: Final = "coach.example"
ROSTER_KEY: Final = decode_base64url(VECTORS["roster_key"], 32)
PUBLIC_KEY: Final = decode_base64url(VECTORS["publisher"]["public_key"], 32)
PRIVATE_KEY: Final = decode_base64url(VECTORS["publisher"]["private_key"], 32)
ROSTER: Final = base64.b64decode(VECTORS["roster"]["file_base64"])
DELTA: Final = base64.b64decode(VECTORS["delta"]["file_base64"])
DELTA_RESULT: Final = base64.b64decode(VECTORS["delta"]["result_base64"])
DAMAGED: Final = {
    damage["check"]: base64.b64decode(damage["file_base64"]) for damage in VECTORS["damaged"]
}

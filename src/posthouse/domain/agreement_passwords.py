"""The passwords of agreements: how they are kept, and which are too weak.

They are made by programs, one for each agreement, and never typed by anybody,
so a plain hash under the agreement-ID is kept: a slow one would protect what
has 128 bits of randomness no better, and ten thousand completions after a
recovery would take minutes instead of seconds. What a person might have chosen
is refused (422) instead.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

# 128 bits are 22 characters of base64url, 26 of base32, 32 of hex; a long pass phrase is let
# pass too. Below, a dictionary would do.
MIN_PASSWORD: Final = 16
MIN_DIFFERENT: Final = 8


def hash_password(agreement_id: str, password: str) -> bytes:
    """The hash that is kept: SHA-256, salted by the agreement-ID."""
    text = f"posthouse agreement\0{agreement_id}\0{password}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def is_password(kept: bytes, shown: bytes) -> bool:
    """Compare two hashes in constant time; an empty one is nobody's password."""
    return hmac.compare_digest(kept, shown) and bool(kept)


def is_weak(agreement_id: str, password: str) -> bool:
    """Tell what must not become a password: short, monotonous, unprintable, or the user name."""
    return (
        len(password) < MIN_PASSWORD
        or len(set(password)) < MIN_DIFFERENT
        or not password.isascii()
        or not password.isprintable()
        or agreement_id in password
    )

"""The SubjectPublicKeyInfo of a certificate, as it stands there (RFC 5280 §4.1, X.690).

A pin is the SHA-256 of these octets (PROTOCOL.md §1). They are cut out, not
decoded and encoded again: a library that writes a key another way than the
certificate does would give another hash.
"""

from __future__ import annotations

import hashlib
from typing import Final

_SEQUENCE: Final = 0x30
_INTEGER: Final = 0x02
_VERSION: Final = 0xA0
# serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo
_FIELDS: Final = (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE)
_ISSUER, _SUBJECT, _KEY = 2, 4, 5
_MAX_LENGTH_OCTETS: Final = 4


def hash_spki(certificate: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of a DER certificate. Raises ValueError."""
    return hashlib.sha256(extract_spki(certificate)).digest()


def is_self_issued(certificate: bytes) -> bool:
    """Tell whether it names itself as its issuer: nobody else vouches for it. Raises ValueError."""
    fields = _split(certificate)
    return fields[_ISSUER] == fields[_SUBJECT]


def extract_spki(certificate: bytes) -> bytes:
    """Cut out the DER SubjectPublicKeyInfo. Raises ValueError when it is no certificate."""
    return _split(certificate)[_KEY]


def _split(certificate: bytes) -> list[bytes]:
    """The fields of a tbsCertificate from serialNumber to subjectPublicKeyInfo."""
    start, end, _ = _read(certificate, 0, len(certificate), _SEQUENCE)  # Certificate
    start, end, _ = _read(certificate, start, end, _SEQUENCE)  # tbsCertificate
    if start < end and certificate[start] == _VERSION:
        start = _read(certificate, start, end, _VERSION)[1]
    found = []
    for tag in _FIELDS:
        _, after, first = _read(certificate, start, end, tag)
        found.append(certificate[first:after])
        start = after
    return found


def _read(data: bytes, at: int, end: int, tag: int) -> tuple[int, int, int]:
    """One element at `at`: where its content starts and ends, and where itself starts."""
    if at + 2 > end or data[at] != tag:
        raise ValueError("not an X.509 certificate")
    size = data[at + 1]
    start = at + 2
    if size & 0x80:
        octets = size & 0x7F
        if not 1 <= octets <= _MAX_LENGTH_OCTETS or start + octets > end:
            raise ValueError("not an X.509 certificate: bad length")
        size = int.from_bytes(data[start : start + octets])
        start += octets
    if start + size > end:
        raise ValueError("not an X.509 certificate: cut short")
    return start, start + size, at

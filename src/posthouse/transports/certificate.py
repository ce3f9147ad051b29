"""What a certificate file says of its end. For a warning in time; nothing is verified here."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509


def find_end_us(path: Path) -> int:
    """When the first certificate of a PEM file ends, microseconds since 1970.

    Raises OSError, ValueError when it holds none.
    """
    first = x509.load_pem_x509_certificates(path.read_bytes())[0]
    return int(first.not_valid_after_utc.timestamp() * 1e6)

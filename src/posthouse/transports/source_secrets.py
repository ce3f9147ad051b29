"""Passwords of sources: they stand in files of their own, never in a command line or a URL."""

from __future__ import annotations

from pathlib import Path

from posthouse.errors import SourceFailed


def read_password(path: str) -> str:
    """The first line of a password file. Raises SourceFailed."""
    try:
        with Path(path).open(encoding="utf-8") as stream:
            password = stream.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SourceFailed(f"{path}: {reason}") from error
    if not password:
        raise SourceFailed(f"{path}: its first line is empty; it should be the password")
    return password

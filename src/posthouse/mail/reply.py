"""SMTP replies (RFC 5321 §4.2) with enhanced status codes (RFC 2034, RFC 3463).

The replies this server gives are named here, each with its source, so that
code, tests and docs/replies cite one place.
"""

from __future__ import annotations

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """One reply: code 200..599, enhanced status ("5.1.1" or ""), text lines without CRLF."""

    code: int
    enhanced: str
    text: str

    @property
    def positive(self) -> bool:
        """True for 2xx and 3xx."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        """True for 4xx."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """True for 5xx."""
        return self.code >= 500

    def encode(self) -> bytes:
        """The octets on the wire, every line ended by CRLF."""
        if "\n" not in self.text:
            enhanced = f"{self.enhanced} " if self.enhanced else ""
            return f"{self.code} {enhanced}{self.text}\r\n".encode("utf-8", "replace")
        prefix = f" {self.enhanced}" if self.enhanced else ""
        lines = self.text.split("\n")
        last = len(lines) - 1
        return "".join(
            f"{self.code}{'-' if i < last else ' '}{prefix[1:] + ' ' if prefix else ''}{line}\r\n"
            for i, line in enumerate(lines)
        ).encode("utf-8", "replace")

    def __str__(self) -> str:
        body = self.text.replace("\n", " ")
        return f"{self.code} {self.enhanced} {body}" if self.enhanced else f"{self.code} {body}"

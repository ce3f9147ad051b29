"""base_url of a pairing, and which URLs lie under it (PROTOCOL.md §1).

Both sides check this before they call a URL that the other gave: it is what
keeps a paired party from sending our token, or our requests, elsewhere. The
parser is ours: `urllib.parse` drops control characters and lets pass much that
RFC 3986 has no place for, and two parsers that disagree are how such checks
are walked around.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import msgspec

MAX_URL_OCTETS: Final = 2048
DEFAULT_PORTS: Final = {"https": 443, "http": 80}

# RFC 3986 §2: unreserved, reserved and whole percent-encodings, nothing else. So no space,
# no control, no backslash, no octet over 127.
_CHARACTERS: Final = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+\Z")
# RFC 3986 appendix B, for what has an authority.
_PARTS: Final = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?\Z"
)
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?\Z")
_FORBIDDEN: Final = ("\\", "%2e", "%2f", "%5c")


class Url(msgspec.Struct, frozen=True, kw_only=True):
    """A URL taken apart. scheme, host: lower case; an IPv6 address keeps its brackets.

    query None: no question mark.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str | None

    @property
    def target(self) -> str:
        """Path and query, as they stand in a request line."""
        return self.path if self.query is None else f"{self.path}?{self.query}"


def parse_base_url(text: str) -> Url:
    """Read a base_url: https (or http to loopback), no query, path ends in "/".

    Raises ValueError with what is wrong.
    """
    url = parse_url(text)
    if "?" in text:
        raise ValueError("has a query")
    if not url.path.endswith("/"):
        raise ValueError('its path does not end in "/"')
    return url


def parse_url(text: str) -> Url:
    """Read a URL that may be called at all: every rule of PROTOCOL.md §0 and §1 but the base.

    Raises ValueError with what is wrong.
    """
    if len(text) > MAX_URL_OCTETS:
        raise ValueError(f"longer than {MAX_URL_OCTETS} octets")
    for part in _FORBIDDEN:
        if part in text.lower():
            raise ValueError(f"has {part}")
    match = _PARTS.match(text)
    if _CHARACTERS.match(text) is None or match is None:
        raise ValueError("not a URL")
    scheme, authority, path, query, fragment = match.groups()
    scheme = scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise ValueError("neither https nor http")
    if fragment is not None:
        raise ValueError("has a fragment")
    if "@" in authority:
        raise ValueError("has a user before the host")
    if any(segment in (".", "..") for segment in path.split("/")):
        raise ValueError("has a . or .. in its path")
    host, port = _parse_authority(authority, DEFAULT_PORTS[scheme])
    if scheme == "http" and not is_loopback(host):
        raise ValueError("plain http is for loopback only; use https")
    return Url(scheme=scheme, host=host, port=port, path=path, query=query)


def _parse_authority(authority: str, default_port: int) -> tuple[str, int]:
    match = _AUTHORITY.match(authority)
    if match is None:
        raise ValueError("its host is not a name or an address")
    host = match[1].lower()
    port = int(match[2]) if match[2] else default_port
    if not 1 <= port <= 65535:
        raise ValueError("its port is out of range")
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        elif host.rstrip(".").rpartition(".")[2].isdigit():
            # 127.1 and 0x7f.1 are addresses to some resolvers: only the plain form is one here.
            ipaddress.IPv4Address(host)
    except ValueError as error:
        raise ValueError("its host is not a name or an address") from error
    return host, port


def is_loopback(host: str) -> bool:
    """Tell whether a host of a URL is 127.0.0.0/8, ::1 or localhost (PROTOCOL.md §0)."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    # ::ffff:127.0.0.1 is not in the list.
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def lies_under(base_url: str, url: str) -> bool:
    """Tell whether `url` may be called for a party with this base_url. Total: never raises.

    Scheme, host (lower case) and port (default filled in) are equal; no userinfo,
    fragment, backslash, %2e, %2f, %5c, . or .. segment; the path begins with the
    base path. Spec: PROTOCOL.md §1.
    """
    try:
        base, other = parse_base_url(base_url), parse_url(url)
    except ValueError:
        return False
    return (base.scheme, base.host, base.port) == (
        other.scheme,
        other.host,
        other.port,
    ) and other.path.startswith(base.path)


def join_url(base_url: str, path: str) -> str:
    """The whole URL of a path under base_url, or of a URL that lies under it already.

    Raises ValueError when it does not lie under base_url.
    """
    url = path if "://" in path else base_url + path
    if not lies_under(base_url, url):
        raise ValueError(f"{url!r} does not lie under {base_url!r}")
    return url

"""Which side of a pairing we are, as far as an unfinished configuration tells.

Pairing comes before the configuration is whole (it names the files that
pairing makes), so only the few keys that count here are read, and options
may stand in for each of them.
"""

from __future__ import annotations

import dataclasses
import pwd
import ssl
from pathlib import Path
from typing import Any, Final

from posthouse.config_reading import parse_toml, read_text_file
from posthouse.config_values import Wrong, read_domain, read_endpoint
from posthouse.errors import ConfigError
from posthouse.node_user import find_user
from posthouse.proto.base_url import parse_base_url
from posthouse.proto.pairing import Kind
from posthouse.proto.spki import hash_spki, is_self_issued

DEFAULT_PORT: Final = 8447
PAIRS_DIRECTORY: Final = "pairs"
SIGNING_KEY_FILE: Final = "signing.key"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Us, in this pairing. certificate: what our HTTPS door shows, None without one.

    kind: "primary" for who grants: the owner of the domains, or a backup towards one that
    stands behind it (owned: False). domains: all of ours. url_is_given: base_url was said in
    so many words, by an option or the file. account: who runs the node and
    must be able to read what is made; None: whoever we are.
    """

    kind: Kind
    file: Path
    party: str
    base_url: str
    domains: tuple[str, ...]
    data_dir: Path | None
    certificate: Path | None
    signing_key: Path | None
    account: pwd.struct_passwd | None
    owned: bool = True
    url_is_given: bool = False

    @property
    def table(self) -> str:
        """The table of our configuration for the other side."""
        return "backup" if self.kind == "primary" else "primary"

    @property
    def pairs(self) -> Path:
        """Where pairing files lie: beside the configuration."""
        return self.file.parent / PAIRS_DIRECTORY


def read_side(
    file: Path, *, party: str | None = None, base_url: str | None = None, behind: bool = False
) -> Side:
    """Read what counts. behind: we are a backup, and they stand behind us. Raises ConfigError."""
    table = parse_toml(file, read_text_file(file))
    base = file.absolute().parent
    owned = "party" in table
    if owned and behind:
        raise ConfigError([f"{file}: is a primary's; --behind is for a backup with one behind it"])
    kind: Kind = "primary" if owned or behind else "backup"
    https = _table(table, "https")
    certificate = https.get("certificate")
    if certificate is None and not owned:
        certificate = _table(table, "smtp").get("certificate")
    name = party or table.get("party" if owned else "hostname")
    if not isinstance(name, str):
        raise ConfigError([f"{file}: has neither party nor hostname; add one or use --party"])
    url = base_url or table.get("base_url") or _guess_base_url(name, https, certificate)
    try:
        parse_base_url(url)
    except ValueError as error:
        raise ConfigError(
            [f"base_url: {url} {error}; use --base-url https://{name}:{DEFAULT_PORT}/"]
        ) from error
    user = table.get("user")
    data_dir = _path(base, table.get("data_dir"))
    key = _path(base, table.get("signing_key"))
    if key is None and data_dir is not None:
        key = data_dir / SIGNING_KEY_FILE
    return Side(
        kind=kind,
        file=file.absolute(),
        party=name,
        base_url=url,
        domains=_read_domains(table) if kind == "primary" else (),
        data_dir=data_dir,
        certificate=_path(base, certificate),
        signing_key=key,
        account=find_user(user) if isinstance(user, str) else None,
        owned=owned or not behind,
        url_is_given=base_url is not None or "base_url" in table,
    )


def find_pin(side: Side, *, wanted: bool | None) -> bytes | None:
    """The pin of our certificate: when wanted, or, left to us, when nobody vouches for it.

    Raises ConfigError when it is wanted and there is no certificate to be read.
    """
    if side.certificate is None or wanted is False:
        if wanted:
            raise ConfigError(["--pin: there is no certificate; set https.certificate"])
        return None
    try:
        der = ssl.PEM_cert_to_DER_cert(_first_certificate(side.certificate.read_text("ascii")))
        return hash_spki(der) if wanted or is_self_issued(der) else None
    except OSError as error:
        raise ConfigError([f"{side.certificate}: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"{side.certificate}: no certificate: {error}"]) from error


def _first_certificate(text: str) -> str:
    """The leaf stands first; a key may stand before it."""
    start = text.find(ssl.PEM_HEADER)
    end = text.find(ssl.PEM_FOOTER, start)
    if start < 0 or end < 0:
        raise ValueError("not PEM")
    return text[start : end + len(ssl.PEM_FOOTER)]


def _guess_base_url(name: str, https: dict[str, Any], certificate: object) -> str:
    listen = https.get("listen")
    port = DEFAULT_PORT
    if isinstance(listen, list) and listen:
        try:
            port = read_endpoint()(listen[0]).port or DEFAULT_PORT
        except Wrong:
            pass  # `posthouse check` tells
    # Without a certificate the door is on loopback only.
    return f"https://{name}:{port}/" if certificate is not None else f"http://127.0.0.1:{port}/"


def _read_domains(table: dict[str, Any]) -> tuple[str, ...]:
    found = []
    for domain in table.get("domain", []):
        try:
            found.append(read_domain(domain.get("name")))
        except (Wrong, AttributeError):
            continue  # `posthouse check` tells
    return tuple(dict.fromkeys(found))


def _table(table: dict[str, Any], name: str) -> dict[str, Any]:
    value = table.get(name)
    return value if isinstance(value, dict) else {}


def _path(base: Path, value: object) -> Path | None:
    return base / value if isinstance(value, str) else None

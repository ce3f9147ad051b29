"""One paged LDAP search. The one owner of ldap3; import it when it is needed (an extra).

ldap3 compares host names by a function that Python has given up, and sends no
server name: TLS is therefore wrapped here, by the system's own rules.
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Generator
from typing import Any, Final, Literal

import ldap3
from ldap3.core.exceptions import LDAPException
from ldap3.core.results import RESULT_SUCCESS

from posthouse.domain.source_kinds import LdapSpec
from posthouse.errors import SourceFailed

CONNECT_SECONDS: Final = 10
RECEIVE_SECONDS: Final = 60
SEARCH_SECONDS: Final = 900.0
_PAGED_RESULTS: Final = "1.2.840.113556.1.4.319"  # RFC 2696
_SCOPES: Final[dict[str, Literal["BASE", "LEVEL", "SUBTREE"]]] = {
    "base": "BASE",
    "one": "LEVEL",
    "sub": "SUBTREE",
}


class _Tls(ldap3.Tls):
    """Verifies chain and name, whatever ldap3 would do."""

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:  # noqa: ARG002
        """Put TLS around the connection's socket. Raises ssl.SSLError, OSError."""
        context = ssl.create_default_context(cafile=self.ca_certs_file)
        connection.socket = context.wrap_socket(
            connection.socket, server_hostname=connection.server.host
        )


def search(spec: LdapSpec, domain: str, password: str) -> Generator[tuple[str, bytes], None, None]:
    """Give (attribute, value) for every entry found. Raises SourceFailed without a name."""
    try:
        connection = _connect(spec, password)
        try:
            yield from _search(connection, spec, domain)
        finally:
            connection.unbind()
    except LDAPException as error:
        raise SourceFailed(_describe(error)) from error
    except OSError as error:
        raise SourceFailed(str(error)) from error


def _connect(spec: LdapSpec, password: str) -> ldap3.Connection:
    start_tls = spec.tls == "starttls" or (
        spec.tls == "auto" and not spec.ldaps and not _is_here(spec.host)
    )
    server = ldap3.Server(
        spec.host,
        port=spec.port,
        use_ssl=spec.ldaps,
        tls=_Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=spec.ca_file or None),
        get_info=ldap3.NONE,
        connect_timeout=CONNECT_SECONDS,
    )
    connection = ldap3.Connection(
        server,
        user=spec.bind_dn or None,
        password=password or None,
        read_only=True,
        auto_referrals=False,
        check_names=False,
        raise_exceptions=True,
        receive_timeout=RECEIVE_SECONDS,
    )
    try:
        connection.open()
        if start_tls:
            connection.start_tls()
        connection.bind()
    except BaseException:
        if connection.socket is not None:
            connection.socket.close()
        raise
    return connection


def _search(
    connection: ldap3.Connection, spec: LdapSpec, domain: str
) -> Generator[tuple[str, bytes], None, None]:
    condition = spec.filter or "(|" + "".join(f"({one}=*)" for one in spec.attributes) + ")"
    deadline = time.monotonic() + SEARCH_SECONDS
    cookie: bytes | None = None
    while True:
        connection.search(
            search_base=spec.base,
            search_filter=condition.replace("{domain}", domain),  # A-labels need no escapes
            search_scope=_SCOPES[spec.scope],
            attributes=list(spec.attributes),
            paged_size=spec.page_size,
            paged_cookie=cookie,
        )
        # ldap3 takes "size limit exceeded", "time limit exceeded" and referrals for success.
        if connection.result["result"] != RESULT_SUCCESS:
            raise SourceFailed(f"{connection.result['description']}: not all was read")
        for entry in connection.response or ():
            if entry["type"] == "searchResEntry":  # else a referral: those hold no people
                for name, values in entry["raw_attributes"].items():
                    yield from ((name.partition(";")[0], value) for value in values)
        paging = connection.result.get("controls", {}).get(_PAGED_RESULTS)
        cookie = paging["value"]["cookie"] if paging else None
        if not cookie:
            return
        if time.monotonic() > deadline:
            raise SourceFailed("took too long: not all was read")


def _describe(error: LDAPException) -> str:
    kind = str(getattr(error, "description", "") or "")
    said = str(getattr(error, "message", "") or error or type(error).__name__)
    text = said if not kind or kind in said else f"{kind}: {said}"
    return "".join(c if c.isprintable() else "?" for c in text[:300])


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

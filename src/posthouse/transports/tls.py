"""TLS as a sans-IO filter: `ssl.MemoryBIO` inside, the owner of a channel moves the octets.

Server side: `TlsServer` keeps the certificate in force and makes channels;
`reload` swaps it whole or not at all. Client side: `ClientTls` makes channels
for one of the modes of `relay.tls`. TLS 1.2 is the least on both sides
(RFC 8996, RFC 9325); nobody is asked for a client certificate.

Failures: everything a handshake or a record can do wrong is `TlsFailed`, whose
`alert` should still be sent; a bad certificate file is `ConfigError`.
Spec: RFC 3207, RFC 8446, RFC 9325.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, Literal

from posthouse.errors import ConfigError, TlsFailed

TlsMode = Literal["none", "opportunistic", "required", "verified"]
"""none: never; opportunistic: where offered, unverified, else in clear; required: encrypted,
unverified; verified: encrypted, certificate chain and host name checked."""

_READ_BYTES: Final = 65536  # several records a turn; what is fed bounds what comes out


class MemoryTls:
    """One TLS connection over memory; see `posthouse.ports_tls.TlsChannel`."""

    __slots__ = ("_incoming", "_outgoing", "_ssl", "_waits_to_be_fed", "eof", "established")

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._waits_to_be_fed = server_side
        self.established = False
        self.eof = False

    def start(self) -> bytes:
        """Begin the handshake; returns octets for the peer (b"" on the server side).

        Raises TlsFailed.
        """
        if not self._waits_to_be_fed:
            self._shake_hands()
        return self._outgoing.read()

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take octets from the peer; returns (plain text, octets for the peer).

        Plain text is never longer than what was fed, and what was already held.
        Raises TlsFailed.
        """
        self._incoming.write(data)
        if not self.established:
            self._shake_hands()
            if not self.established:
                return b"", self._outgoing.read()
        plain = self._read_records()
        return plain, self._outgoing.read()

    def wrap(self, plain: bytes) -> bytes:
        """Encrypt; only once `established`. Raises TlsFailed."""
        if plain:  # an empty write is an error in OpenSSL
            try:
                self._ssl.write(plain)  # a MemoryBIO takes everything
            except ssl.SSLError as error:
                raise TlsFailed(_describe(error), alert=self._outgoing.read()) from error
        return self._outgoing.read()

    def close(self) -> bytes:
        """Our close_notify, b"" if none can be made. Never raises."""
        try:
            self._ssl.unwrap()
        except (ssl.SSLError, ValueError, OSError):
            pass  # SSLWantRead: ours is written, the peer's is not awaited
        return self._outgoing.read()

    def describe(self) -> str:
        """E.g. "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" before the handshake is done."""
        cipher = self._ssl.cipher() if self.established else None
        return f"{self._ssl.version()} {cipher[0]}" if cipher else ""

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return
        except (ssl.SSLError, ValueError) as error:  # CertificateError is an SSLError
            raise TlsFailed(_describe(error), alert=self._outgoing.read()) from error
        self.established = True

    def _read_records(self) -> bytes:
        pieces: list[bytes] = []
        try:
            while True:
                piece = self._ssl.read(_READ_BYTES)
                if not piece:
                    self.eof = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.eof = True
        except ssl.SSLError as error:
            raise TlsFailed(_describe(error), alert=self._outgoing.read()) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class TlsServer:
    """Makes server-side channels from the certificate in force; `ports_tls.TlsServer`.

    Raises ConfigError when the files cannot be used.
    """

    def __init__(self, certificate: Path, private_key: Path) -> None:
        self._certificate = certificate
        self._private_key = private_key
        self._context = _load_server_context(certificate, private_key)

    def reload(self) -> None:
        """Read the files again; new channels use them, open ones keep theirs.

        Raises ConfigError and keeps the certificate in force when the new files are bad.
        """
        self._context = _load_server_context(self._certificate, self._private_key)

    def open_channel(self) -> MemoryTls:
        """A server-side channel, handshake not begun."""
        return MemoryTls(self._context, server_side=True)


class ClientTls:
    """Makes client-side channels for one mode. `ca_file`: roots instead of the system's.

    Raises ConfigError when `ca_file` cannot be used.
    """

    def __init__(self, mode: TlsMode, *, ca_file: Path | None = None) -> None:
        self.mode: Final[TlsMode] = mode
        self._context = _client_context(mode, ca_file)

    def open_channel(self, host: str) -> MemoryTls:
        """A client-side channel to `host`: its name is sent (SNI) and, if "verified", checked.

        Raises TlsFailed for a name that cannot be in a certificate.
        """
        try:
            return MemoryTls(self._context, server_side=False, server_hostname=host or None)
        except (ssl.SSLError, ValueError) as error:  # e.g. a label of 64 octets
            raise TlsFailed(_describe(error)) from error


def _load_server_context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    for path in (certificate, private_key):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    try:
        # An encrypted key would make OpenSSL ask on the terminal: refuse it instead.
        context.load_cert_chain(certificate, private_key, password=_no_password)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigError(
            [f"{certificate}, {private_key}: no usable certificate and key: {_describe(error)}"]
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the private key is encrypted")


def _client_context(mode: TlsMode, ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if mode != "verified":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(ca_file)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError([f"{ca_file}: no usable certificates: {_describe(error)}"]) from error
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that renegotiates for ever is a cheap way to burn our CPU (CVE-2011-1473).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


def _describe(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verification failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error) or type(error).__name__

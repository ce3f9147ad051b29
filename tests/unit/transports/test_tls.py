"""TLS channels: handshakes, reload, verification, and what goes wrong."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from posthouse import ports_tls
from posthouse.errors import ConfigError, TlsFailed
from posthouse.transports.tls import ClientTls, MemoryTls, TlsMode, TlsServer

CA = trustme.CA()
OTHER_CA = trustme.CA()


def write_certificate(folder: Path, *names: str, ca: trustme.CA = CA) -> tuple[Path, Path]:
    """A certificate and its key in `folder`."""
    issued = ca.issue_cert(*names)
    certificate, key = folder / "fullchain.pem", folder / "privkey.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


def write_roots(folder: Path, ca: trustme.CA = CA) -> Path:
    """The CA's own certificate in `folder`."""
    path = folder / "roots.pem"
    path.write_bytes(ca.cert_pem.bytes())
    return path


def shake_hands(
    client: ports_tls.TlsChannel, server: ports_tls.TlsChannel, step: int = 1 << 20
) -> None:
    """Carry octets both ways, `step` at a time, until nothing moves."""
    to_server, to_client = client.start(), server.start()
    while to_server or to_client:
        piece, to_server = to_server[:step], to_server[step:]
        to_client += server.feed(piece)[1]
        piece, to_client = to_client[:step], to_client[step:]
        to_server += client.feed(piece)[1]


@pytest.fixture
def server(tmp_path: Path) -> TlsServer:
    return TlsServer(*write_certificate(tmp_path, "mx.example.com"))


@pytest.mark.parametrize("step", [1 << 20, 1, 100])
def test_text_passes_both_ways_however_the_octets_are_cut(server: TlsServer, step: int) -> None:
    """What one side wraps is what the other side reads, for every cut."""
    a, b = ClientTls("required").open_channel("mx.example.com"), server.open_channel()
    shake_hands(a, b, step)
    assert a.established
    assert b.established
    assert a.describe() == b.describe()
    assert a.describe().startswith("TLSv1.3 ")
    for sender, receiver in ((a, b), (b, a)):
        text = b"x" * 100_000
        sealed = sender.wrap(text)
        plain = b"".join(
            receiver.feed(sealed[i : i + 4099])[0] for i in range(0, len(sealed), 4099)
        )
        assert plain == text


def test_text_sent_with_the_last_handshake_octets_is_not_lost(server: TlsServer) -> None:
    """A command in the same segment as the client's Finished is read at once."""
    a, b = ClientTls("required").open_channel("mx.example.com"), server.open_channel()
    to_client = b.feed(a.start())[1]
    finished = a.feed(to_client)[1]
    assert b.feed(finished + a.wrap(b"EHLO x\r\n"))[0] == b"EHLO x\r\n"


def test_close_notify_is_seen(server: TlsServer) -> None:
    """After the peer's close_notify `eof` is True, and closing again is harmless."""
    a, b = ClientTls("required").open_channel("mx.example.com"), server.open_channel()
    shake_hands(a, b)
    plain, _ = b.feed(a.wrap(b"QUIT\r\n") + a.close())
    assert plain == b"QUIT\r\n"
    assert b.eof
    assert not a.eof
    b.close()
    a.close()


def test_close_before_the_handshake_is_harmless(server: TlsServer) -> None:
    """`close` and `describe` never raise, whatever the state."""
    for channel in (server.open_channel(), ClientTls("required").open_channel("x.example")):
        assert channel.describe() == ""
        channel.close()


def test_wrapping_nothing_gives_nothing(server: TlsServer) -> None:
    """An empty text makes no record."""
    a, b = ClientTls("required").open_channel("mx.example.com"), server.open_channel()
    shake_hands(a, b)
    assert a.wrap(b"") == b""


@pytest.mark.parametrize("octets", [b"EHLO client.example\r\n", b"\x16\x03\x01" + b"\xff" * 300])
def test_a_client_that_does_not_speak_tls_fails(server: TlsServer, octets: bytes) -> None:
    """Clear text or rubbish in place of a ClientHello is TlsFailed."""
    with pytest.raises(TlsFailed):
        server.open_channel().feed(octets)


def test_a_spoiled_record_fails(server: TlsServer) -> None:
    """A record whose tag does not fit is TlsFailed, with an alert for the peer."""
    a, b = ClientTls("required").open_channel("mx.example.com"), server.open_channel()
    shake_hands(a, b)
    sealed = bytearray(a.wrap(b"MAIL FROM:<>\r\n"))
    sealed[-1] ^= 1
    with pytest.raises(TlsFailed) as caught:
        b.feed(bytes(sealed))
    assert caught.value.alert


def test_tls_1_1_is_refused(server: TlsServer) -> None:
    """A client that offers no more than TLS 1.1 gets no session."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(TlsFailed):
        shake_hands(MemoryTls(context, server_side=False), server.open_channel())


@pytest.mark.parametrize("mode", ["opportunistic", "required"])
def test_unverified_modes_take_any_certificate(server: TlsServer, mode: TlsMode) -> None:
    """Opportunistic and required TLS check neither chain nor name."""
    a, b = ClientTls(mode).open_channel("elsewhere.example"), server.open_channel()
    shake_hands(a, b)
    assert a.established


def test_verified_takes_the_right_certificate(server: TlsServer, tmp_path: Path) -> None:
    """Chain and name fit: the session is established."""
    a = ClientTls("verified", ca_file=write_roots(tmp_path)).open_channel("mx.example.com")
    shake_hands(a, server.open_channel())
    assert a.established


def test_verified_takes_an_address_in_the_certificate(tmp_path: Path) -> None:
    """A next hop given as an address is checked against the certificate's addresses."""
    server = TlsServer(*write_certificate(tmp_path, "127.0.0.1"))
    a = ClientTls("verified", ca_file=write_roots(tmp_path)).open_channel("127.0.0.1")
    shake_hands(a, server.open_channel())
    assert a.established


@pytest.mark.parametrize(("host", "ca"), [("other.example", CA), ("mx.example.com", OTHER_CA)])
def test_verified_refuses_wrong_name_and_unknown_issuer(
    server: TlsServer, tmp_path: Path, host: str, ca: trustme.CA
) -> None:
    """A certificate for another name or from another issuer is TlsFailed and says so."""
    client = ClientTls("verified", ca_file=write_roots(tmp_path, ca)).open_channel(host)
    with pytest.raises(TlsFailed, match="certificate verification failed") as caught:
        shake_hands(client, server.open_channel())
    assert caught.value.alert


def test_a_host_no_certificate_can_name_is_tls_failed() -> None:
    """A host name OpenSSL will not take is a failure of TLS, not of the program."""
    with pytest.raises(TlsFailed):
        ClientTls("verified").open_channel("." + "a" * 300)


def peer_certificate(server: TlsServer, roots: Path, host: str) -> bool:
    """Whether the server's certificate in force is good for `host`."""
    client = ClientTls("verified", ca_file=roots).open_channel(host)
    try:
        shake_hands(client, server.open_channel())
    except TlsFailed:
        return False
    return True


def test_reload_uses_the_new_files_for_new_channels_only(tmp_path: Path) -> None:
    """After `reload` new channels show the new certificate, open ones go on."""
    roots = write_roots(tmp_path)
    server = TlsServer(*write_certificate(tmp_path, "old.example"))
    a, b = ClientTls("required").open_channel("old.example"), server.open_channel()
    shake_hands(a, b)
    write_certificate(tmp_path, "new.example")
    assert peer_certificate(server, roots, "old.example")
    server.reload()
    assert peer_certificate(server, roots, "new.example")
    assert b.feed(a.wrap(b"NOOP\r\n"))[0] == b"NOOP\r\n"


@pytest.mark.parametrize("spoil", ["rubbish", "missing", "mismatch"])
def test_reload_keeps_the_old_certificate_when_the_new_files_are_bad(
    tmp_path: Path, spoil: str
) -> None:
    """Bad new files are a ConfigError that names them, and change nothing."""
    roots = write_roots(tmp_path)
    certificate, key = write_certificate(tmp_path, "old.example")
    server = TlsServer(certificate, key)
    if spoil == "rubbish":
        certificate.write_text("no certificate")
    elif spoil == "missing":
        key.unlink()
    else:
        key.write_bytes(CA.issue_cert("other.example").private_key_pem.bytes())
    with pytest.raises(ConfigError, match="pem"):
        server.reload()
    assert peer_certificate(server, roots, "old.example")


def test_an_encrypted_key_is_refused_without_asking(tmp_path: Path) -> None:
    """A key with a pass phrase is a ConfigError, never a question on the terminal."""
    from cryptography.hazmat.primitives import serialization

    certificate, key = write_certificate(tmp_path, "mx.example")
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="encrypted"):
        TlsServer(certificate, key)


def test_bad_roots_are_a_config_error(tmp_path: Path) -> None:
    """A file of roots that is missing or empty is named when the client is made."""
    with pytest.raises(ConfigError, match=r"roots\.pem"):
        ClientTls("verified", ca_file=tmp_path / "roots.pem")


class _TlsEcho(asyncio.Protocol):
    """Sends back what it reads, through a channel."""

    def __init__(self, channel: ports_tls.TlsChannel) -> None:
        self.channel = channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        plain, due = self.channel.feed(data)
        self.transport.write(due + (self.channel.wrap(plain) if plain else b""))
        if self.channel.eof:
            self.transport.write(self.channel.close())
            self.transport.close()


@pytest.mark.peers
@pytest.mark.parametrize(("version", "name"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
async def test_openssl_s_client_talks_to_it(
    server: TlsServer, tmp_path: Path, version: str, name: str
) -> None:
    """OpenSSL's own client verifies the chain and gets its text back."""
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _TlsEcho(server.open_channel()), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", f"127.0.0.1:{port}", version, "-quiet", "-brief",
        "-verify_return_error", "-CAfile", str(write_roots(tmp_path)),
        "-verify_hostname", "mx.example.com", "-no_ign_eof",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b"hello from outside\n")
    await client.stdin.drain()
    assert await client.stdout.readline() == b"hello from outside\n"
    client.stdin.close()
    _, said = await client.communicate()
    assert name.encode() in said
    assert client.returncode == 0
    listener.close()
    await listener.wait_closed()

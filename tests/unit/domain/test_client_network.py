"""Client networks: what a limit counts."""

from __future__ import annotations

from posthouse.domain.client_network import client_network, plain_address


def test_networks() -> None:
    """Connections are counted per IPv4 /24 and IPv6 /64; mapped addresses are IPv4."""
    assert client_network("192.0.2.7") == client_network("192.0.2.250")
    assert client_network("192.0.2.7") != client_network("192.0.3.7")
    assert client_network("2001:db8::1") == client_network("2001:db8:0:0:ffff::1")
    assert client_network("2001:db8::1") != client_network("2001:db8:0:1::1")
    assert client_network("::ffff:192.0.2.7") == client_network("192.0.2.9")
    assert plain_address("::ffff:192.0.2.7") == "192.0.2.7"
    assert plain_address("fe80::1%eth0") == "fe80::1"

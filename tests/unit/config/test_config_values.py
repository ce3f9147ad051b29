from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from posthouse import config_values as values
from posthouse.config_values import Endpoint, FixedHop, Wrong

FINE = [
    (values.read_duration("0s", "365d"), "30s", timedelta(seconds=30)),
    (values.read_duration("0s", "365d"), "1h30m", timedelta(minutes=90)),
    (values.read_duration("0s", "365d"), "250ms", timedelta(milliseconds=250)),
    (values.read_duration("0s", "365d"), "2w", timedelta(days=14)),
    (values.read_size("0B", "1TiB"), "50MB", 50_000_000),
    (values.read_size("0B", "1TiB"), "10MiB", 10 * 1024 * 1024),
    (values.read_size("0B", "1TiB"), "10 kib", 10 * 1024),
    (values.read_size("0B", "1TiB"), 4096, 4096),
    (values.read_domain, "Exämple.COM.", "xn--exmple-cua.com"),
    (values.read_domain, "straße.example", "xn--strae-oqa.example"),
    (values.read_domain, "faß.example", "xn--fa-hia.example"),
    (values.read_host_name, "MX2.example.net", "mx2.example.net"),
    (values.read_mailbox, "Ops@BÜCHER.example", "Ops@xn--bcher-kva.example"),
    (values.read_endpoint(), "0.0.0.0:25", Endpoint(address="0.0.0.0", port=25)),
    (values.read_endpoint(), "[0:0::1]:2525", Endpoint(address="::1", port=2525)),
    (values.read_endpoint(53), "192.0.2.1", Endpoint(address="192.0.2.1", port=53)),
    (values.read_endpoint(53), "2001:db8::1", Endpoint(address="2001:db8::1", port=53)),
    (values.read_next_hop, "mx", ()),
    (values.read_next_hop, "smtp://10.0.0.1", (FixedHop(host="10.0.0.1", port=25),)),
    (
        values.read_next_hop,
        ["smtp://[2001:DB8::1]:26", "smtp://Mail.example.com/"],
        (FixedHop(host="2001:db8::1", port=26), FixedHop(host="mail.example.com", port=25)),
    ),
    (values.read_address, "[2001:DB8:0::1]", "2001:db8::1"),
]


@pytest.mark.parametrize(("read", "given", "meant"), FINE)
def test_values_are_understood(read: values.Read, given: Any, meant: Any) -> None:
    """A good value becomes what the node works with."""
    assert read(given) == meant


WRONG = [
    (values.read_duration("1s", "1h"), 30, "no unit"),
    (values.read_duration("1s", "1h"), "30", "not a duration"),
    (values.read_duration("1s", "1h"), "30 s", "not a duration"),
    (values.read_duration("1s", "1h"), "2h", "out of range"),
    (values.read_duration("1s", "1h"), "9" * 400 + "w", "not a duration"),
    (values.read_size("64KiB", "1GiB"), "50M", "not a size"),
    (values.read_size("64KiB", "1GiB"), True, "not a size"),
    (values.read_size("64KiB", "1GiB"), "1kB", "out of range"),
    (values.read_count(1, 10), True, "not a number"),
    (values.read_count(1, 10), 11, "out of range"),
    (values.read_flag, "yes", "neither true nor false"),
    (values.read_text, " ", "empty"),
    (values.read_text, 1, "not a text"),
    (values.read_domain, "*.example.com", "pattern"),
    (values.read_domain, "user@example.com", "an address"),
    (values.read_domain, "192.0.2.1", "not a domain name"),
    (values.read_domain, "exa mple.com", "not a domain name"),
    (values.read_domain, "a..example", "not a domain name"),
    (values.read_host_name, "localhost", "not a full name"),
    (values.read_mailbox, "ops", "not an address"),
    (values.read_endpoint(), "0.0.0.0", "not an IP address with a port"),
    (values.read_endpoint(), "::1:25", "not an IP address with a port"),
    (values.read_endpoint(), "mx.example.net:25", "not an IP address with a port"),
    (values.read_endpoint(), "0.0.0.0:65536", "not an IP address with a port"),
    (values.read_next_hop, "mail.example.com", "not a next hop"),
    (values.read_next_hop, [], "empty"),
    (values.read_next_hop, ["lmtp://10.0.0.1"], "not supported in this version"),
    (values.read_next_hop, ["smtp://10.0.0.1:0"], "no valid host and port"),
    (values.read_next_hop, ["smtp://u:p@10.0.0.1"], "more than a host and a port"),
    (values.read_next_hop, ["smtp:10.0.0.1"], "not a URI"),
    (values.read_next_hop, ["smtp://[::1"], "not a URI"),
    (values.read_address, "mx.example.net", "not an IP address"),
    (values.read_choice("a", "b"), "c", "not known here"),
    (values.read_list(values.read_flag), True, "not a list"),
]


@pytest.mark.parametrize(("read", "given", "told"), WRONG)
def test_bad_values_are_named(read: values.Read, given: Any, told: str) -> None:
    """A bad value is told with what is wrong and a remedy."""
    with pytest.raises(Wrong) as caught:
        read(given)
    [(_, what, remedy)] = caught.value.findings
    assert told in what
    assert remedy


def test_all_bad_elements_are_told() -> None:
    """A list reports each of its bad elements, by place."""
    read = values.read_distinct(values.read_endpoint())
    with pytest.raises(Wrong) as caught:
        read(["x", "0.0.0.0:25", 7])
    assert [at for at, _, _ in caught.value.findings] == [(0,), (2,)]


def test_repeated_elements_are_told() -> None:
    """An element that stands twice is a mistake, however it is spelled."""
    read = values.read_distinct(values.read_endpoint())
    with pytest.raises(Wrong) as caught:
        read(["[::0]:25", "[::]:25"])
    assert [(at, what) for at, what, _ in caught.value.findings] == [((1,), "[::]:25 stands twice")]

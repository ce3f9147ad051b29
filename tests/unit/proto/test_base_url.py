"""Which URLs lie under a base_url, after the letter of PROTOCOL.md §1."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.proto.base_url import is_loopback, join_url, lies_under, parse_base_url, parse_url

BASE = "https://mail.example.com:8447/"
DEEP = "https://mail.example.com/posthouse/"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        (BASE, "https://mail.example.com:8447/v1/completion"),
        (BASE, "https://mail.example.com:8447/"),
        (BASE, "HTTPS://MAIL.Example.COM:8447/v1"),
        (BASE, "https://mail.example.com:08447/v1"),
        (BASE, "https://mail.example.com:8447/v1?since=5"),
        (BASE, "https://mail.example.com:8447//v1"),
        (BASE, "https://mail.example.com:8447/a@b"),
        (BASE, "https://mail.example.com:8447/.hidden/...x"),
        (DEEP, "https://mail.example.com/posthouse/v1"),
        (DEEP, "https://mail.example.com:443/posthouse/v1"),
        (DEEP, "https://mail.example.com:/posthouse/v1"),
        ("https://mail.example.com:443/", "https://mail.example.com/x"),
        ("https://mail.example.com/", "https://mail.example.com:443/x"),
        ("https://MAIL.example.com/", "https://mail.example.com/x"),
        ("https://mail.example.com/%7Ea/", "https://mail.example.com/%7Ea/b"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
        ("http://127.9.9.9/", "http://127.9.9.9:80/v1"),
        ("http://localhost/", "http://LOCALHOST:80/v1"),
        ("http://[::1]:81/", "http://[::1]:81/v1"),
        ("https://[2001:DB8::1]/", "https://[2001:db8::1]/v1"),
        ("https://192.0.2.1/", "https://192.0.2.1/v1"),
    ],
)
def test_lies_under(base: str, url: str) -> None:
    """Scheme, host and port count as equal after RFC 3986 parsing; the path begins alike."""
    assert lies_under(base, url)
    assert join_url(base, url) == url


@pytest.mark.parametrize(
    ("base", "url", "why"),
    [
        (BASE, "https://mail.example.com/v1", "the default port is another port"),
        (BASE, "https://mail.example.com:8448/v1", "port"),
        (BASE, "http://mail.example.com:8447/v1", "scheme"),
        (BASE, "https://mail.example.com.evil.example:8447/v1", "host goes on"),
        (BASE, "https://evil.example/mail.example.com:8447/", "host"),
        (BASE, "https://mail.example.com:8447@evil.example/v1", "userinfo"),
        (BASE, "https://user@mail.example.com:8447/v1", "userinfo"),
        (BASE, "https://@mail.example.com:8447/v1", "empty userinfo"),
        (BASE, "https://user:pw@mail.example.com:8447/v1", "userinfo"),
        (BASE, "https://mail.example.com:8447\\@evil.example/v1", "backslash"),
        (BASE, "https://evil.example\\.mail.example.com:8447/v1", "backslash"),
        (BASE, "https:\\\\mail.example.com:8447/v1", "backslash"),
        (BASE, "https://mail.example.com:8447/v1\\..\\x", "backslash"),
        (BASE, "https://mail.example.com:8447/v1#x", "fragment"),
        (BASE, "https://mail.example.com:8447/v1#", "empty fragment"),
        (BASE, "https://mail.example.com:8447/./v1", "dot"),
        (BASE, "https://mail.example.com:8447/v1/..", "dots"),
        (BASE, "https://mail.example.com:8447/v1/../x", "dots"),
        (BASE, "https://mail.example.com:8447/%2e%2e/x", "%2e"),
        (BASE, "https://mail.example.com:8447/%2E./x", "%2E"),
        (BASE, "https://mail.example.com:8447/v1%2fx", "%2f"),
        (BASE, "https://mail.example.com:8447/v1%5Cx", "%5c"),
        (BASE, "https://mail.example.com:8447/v1?x=%2e", "%2e in the query"),
        (BASE, "https://mail.example.com:8447", "no path"),
        (BASE, "https://mail.example.com:8447?x", "no path"),
        (BASE, "//mail.example.com:8447/v1", "no scheme"),
        (BASE, "/v1", "no host"),
        (BASE, "", "nothing"),
        (BASE, " https://mail.example.com:8447/v1", "space before"),
        (BASE, "https://mail.example.com:8447/v1 ", "space behind"),
        (BASE, "https://mail.example.com:8447/v1\n", "line end"),
        (BASE, "https://mail.example.com:84\t47/v1", "tab, which urllib drops"),
        (BASE, "ht\ntps://mail.example.com:8447/v1", "line end, which urllib drops"),
        (BASE, "https://mail.example.com:8447/v1\x00", "NUL"),
        (BASE, "https://mail.example.com:8447/é", "octet over 127"),
        (BASE, "https://mail。example.com:8447/v1", "wide dot"),
        (BASE, "https://mail.example.com:٨٤٤٧/v1", "digits that are not ASCII"),
        (BASE, "https://mail.example.com:8447/%zz", "no percent-encoding"),
        (BASE, "https://mail.example.com:8447/%2", "half a percent-encoding"),
        (BASE, "https://mail.example.com:84470/v1", "port out of range"),
        (BASE, "https://mail.example.com:0/v1", "port 0"),
        (BASE, "https://mail.example.com:+8447/v1", "sign"),
        (BASE, "https://mail%2eexample.com:8447/v1", "encoded dot in the host"),
        (BASE, "https://%6dail.example.com:8447/v1", "encoded letter in the host"),
        (BASE, "https://mail.example.com.:8447/v1", "final dot"),
        (BASE, "https:///v1", "no host"),
        (BASE, "https://:8447/v1", "no host"),
        (BASE, "ftp://mail.example.com:8447/v1", "scheme"),
        (BASE, "javascript:alert(1)", "scheme"),
        (DEEP, "https://mail.example.com/posthouse", "slash missing"),
        (DEEP, "https://mail.example.com/posthousex/v1", "another directory"),
        (DEEP, "https://mail.example.com/Posthouse/v1", "a path has case"),
        (DEEP, "https://mail.example.com/v1", "above the base"),
        (DEEP, "https://mail.example.com/posthouse/../v1", "out by dots"),
        (DEEP, "https://mail.example.com/%70osthouse/v1", "other spelling"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1/v1", "port"),
        ("http://127.0.0.1/", "http://localhost/v1", "host"),
        ("http://mail.example.com/", "http://mail.example.com/v1", "plain http"),
        ("http://127.1/", "http://127.1/v1", "an address only to some"),
        ("http://0x7f.0.0.1/", "http://0x7f.0.0.1/v1", "an address only to some"),
        ("http://[::ffff:127.0.0.1]/", "http://[::ffff:127.0.0.1]/v1", "not in the list"),
        ("https://mail.example.com/x", "https://mail.example.com/x", "base without slash"),
        ("https://mail.example.com/?x", "https://mail.example.com/", "base with query"),
        ("https://mail.example.com/?", "https://mail.example.com/", "base with empty query"),
        ("https://mail.example.com/#", "https://mail.example.com/", "base with fragment"),
        ("https://u@mail.example.com/", "https://mail.example.com/", "base with userinfo"),
        ("https://mail.example.com/a/../", "https://mail.example.com/a/../", "base with dots"),
        ("nonsense", "nonsense", "no base"),
    ],
)
def test_does_not_lie_under(base: str, url: str, why: str) -> None:
    """Whatever two parsers could read in two ways is refused."""
    assert not lies_under(base, url)


@given(st.text(max_size=60), st.text(alphabet=string.printable, max_size=60))
def test_total(base: str, tail: str) -> None:
    """No text makes it raise, and what lies under a base begins with its host and path."""
    lies_under(base, tail)
    lies_under(BASE, base)
    if lies_under(BASE, BASE + tail):
        url = parse_url(BASE + tail)
        assert (url.host, url.port) == ("mail.example.com", 8447)
        assert "\\" not in tail
        assert "#" not in tail


def test_parts() -> None:
    """Defaults are filled in, case is folded where it has no meaning."""
    url = parse_url("HTTPS://Mail.Example.com/A?b=1&c")
    assert (url.scheme, url.host, url.port) == ("https", "mail.example.com", 443)
    assert url.target == "/A?b=1&c"
    assert parse_base_url("http://[::1]/").port == 80


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://mail.example.com/", "loopback"),
        ("https://mail.example.com", "path"),
        ("https://mail.example.com/?a", "query"),
        ("https://mail.example.com/" + "a" * 3000 + "/", "longer"),
        ("https://user@mail.example.com/", "user"),
        ("https://[::g]/", "host"),
        ("https://300.1.1.1/", "host"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    """The person who wrote a base_url is told which rule it breaks."""
    with pytest.raises(ValueError, match=says):
        parse_base_url(text)


def test_join() -> None:
    """A relative path is appended; nothing leads outside."""
    assert join_url(DEEP, "v1/policy") == DEEP + "v1/policy"
    for path in ("../v1", "https://evil.example/", "v1/../../x", "http://mail.example.com/"):
        with pytest.raises(ValueError, match="does not lie under"):
            join_url(DEEP, path)


@pytest.mark.parametrize(
    ("host", "loops"),
    [
        ("127.0.0.1", True),
        ("127.255.1.2", True),
        ("[::1]", True),
        ("localhost", True),
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("[::2]", False),
        ("[::ffff:127.0.0.1]", False),
    ],
)
def test_loopback(host: str, loops: bool) -> None:
    """127.0.0.0/8, ::1 and localhost, nothing else."""
    assert is_loopback(host) is loops

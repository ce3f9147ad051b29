"""LDAP directories as sources: TLS, rights, pages, and what directories hold besides addresses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trustme

from peers.databases import Slapd
from posthouse.domain.recipients import Fold
from posthouse.domain.source_specs import parse_source
from posthouse.errors import SourceFailed
from posthouse.node_sources import open_source
from posthouse.ports_sources import Harvest

pytestmark = pytest.mark.peers

PEOPLE: Final = "".join(
    f"dn: cn=p{number},dc=example,dc=com\nobjectClass: inetOrgPerson\n"
    f"objectClass: exchangePerson\nsn: x\nmail: person{number}@example.com\n"
    f"proxyAddresses: SMTP:person{number}@example.com\n"
    f"proxyAddresses: smtp:alias{number}@example.com\nproxyAddresses: sip:p@example.com\n\n"
    for number in range(30)
)


class Directory:
    def __init__(self, instance: Slapd, place: Path) -> None:
        self.instance = instance
        self.place = place

    def read(self, url: str, **options: str | int) -> tuple[set[str], Harvest]:
        harvest = Harvest()
        written = {
            "ldap": url,
            "bind_dn": Slapd.READER,
            "password_file": str(self.place / "password"),
            "ca_file": str(self.place / "ca.pem"),
            **options,
        }
        source = open_source(parse_source(written), Fold())
        return set(source.read("example.com", harvest)), harvest


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    place = tmp_path_factory.mktemp("ldap")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(place / "ca.pem")
    trustme.CA().cert_pem.write_to_path(place / "other.pem")
    (place / "password").write_text(Slapd.PASSWORD)
    (place / "wrong").write_text("not it\n")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    with Slapd(PEOPLE, chain=chain, key=issued.private_key_pem.bytes()) as instance:
        yield Directory(instance, place)


def test_all_pages_and_attributes(directory: Directory) -> None:
    """More entries than the server gives at once are all read, aliases too, other kinds not."""
    found, harvest = directory.read(
        f"ldaps://localhost:{directory.instance.ldaps_port}/dc=example,dc=com", page_size=7
    )
    assert found == {f"{kind}{number}" for kind in ("person", "alias") for number in range(30)}
    assert (harvest.skipped, harvest.unreadable) == (0, 0)


def test_filter_and_starttls(directory: Directory) -> None:
    """A filter narrows, with the domain put in; StartTLS is used when asked for."""
    url = f"ldap://localhost:{directory.instance.port}/dc=example,dc=com?mail?sub?(mail=person2*@{{domain}})"
    found, _ = directory.read(url, tls="starttls")
    assert found == {"person2", *(f"person{number}" for number in range(20, 30))}


@pytest.mark.parametrize(
    ("host", "options", "said"),
    [
        ("localhost", {"ca_file": "other.pem"}, "certificate verify failed"),
        ("127.0.0.1", {}, "certificate is not valid for '127.0.0.1'|mismatch"),
        ("localhost", {"password_file": "wrong"}, "invalidCredentials"),
        ("localhost", {"password_file": "missing"}, "missing: No such file"),
        ("localhost", {"bind_dn": "", "password_file": ""}, "noSuchObject|insufficientAccess"),
    ],
)
@pytest.mark.parametrize("tls", ["ldaps", "starttls"])
def test_refusals_are_failures(
    directory: Directory, host: str, options: dict[str, str], said: str, tls: str
) -> None:
    """A wrong certificate, name, password or missing rights give no list."""
    where = directory.place
    files = {
        name: str(where / value) if value and name != "bind_dn" else value
        for name, value in options.items()
    }
    port = directory.instance.ldaps_port if tls == "ldaps" else directory.instance.port
    scheme, more = ("ldaps", {}) if tls == "ldaps" else ("ldap", {"tls": "starttls"})
    with pytest.raises(SourceFailed, match=said) as caught:
        directory.read(f"{scheme}://{host}:{port}/dc=example,dc=com?mail", **{**files, **more})
    assert caught.value.detail.count("dc=example,dc=com") >= 1 or "missing" in said
    assert "reader's" not in caught.value.detail


def test_a_cut_list_is_a_failure(directory: Directory) -> None:
    """A server that stops at its limit has given no list."""
    with pytest.raises(SourceFailed, match="sizeLimitExceeded"):
        directory.read(
            f"ldaps://localhost:{directory.instance.ldaps_port}/dc=example,dc=com?mail",
            bind_dn=Slapd.LIMITED,
            page_size=4,
        )


def test_a_missing_driver_names_the_cure(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ldap3 the error says what to install."""
    monkeypatch.delitem(sys.modules, "posthouse.transports.ldap_search", raising=False)
    monkeypatch.setitem(sys.modules, "ldap3", None)
    with pytest.raises(SourceFailed, match=r"pip install posthouse\[ldap\]"):
        directory.read(f"ldap://localhost:{directory.instance.port}/dc=example,dc=com")

"""How sources of addresses are written."""

from __future__ import annotations

import pytest

from posthouse.domain.source_kinds import (
    CsvSpec,
    DovecotSpec,
    LdapSpec,
    PasswdSpec,
    PatternsSpec,
    PostmapSpec,
    SourceSpec,
    SqlSpec,
    TextSpec,
    describe_source,
    resolve_paths,
)
from posthouse.domain.source_specs import SpecError, parse_source

WRITTEN: list[tuple[object, SourceSpec]] = [
    ("file:users.txt", TextSpec(path="users.txt")),
    ("file:users.txt?may_be_empty=yes", TextSpec(path="users.txt", may_be_empty=True)),
    ({"file": "a?b.txt"}, TextSpec(path="a?b.txt")),
    (
        "csv:p.csv?column=mail,other&delimiter=tab",
        CsvSpec(path="p.csv", columns=("mail", "other"), delimiter="\t"),
    ),
    ({"csv": "p.csv", "column": ["1", "3"]}, CsvSpec(path="p.csv", columns=("1", "3"))),
    ("postfix:hash:/etc/postfix/virtual", PostmapSpec(table="hash", path="/etc/postfix/virtual")),
    ("postfix:lmdb:v?config=/c", PostmapSpec(table="lmdb", path="v", config="/c")),
    ("postfix:pcre:/r", PatternsSpec(table="pcre", path="/r")),
    ("passwd:", PasswdSpec()),
    (
        "passwd:p?uid=500-600&aliases=a",
        PasswdSpec(path="p", aliases="a", aliases_must_exist=True, first_uid=500, last_uid=600),
    ),
    ("dovecot:", DovecotSpec()),
    ("dovecot:/d.conf?mask=*@example.com", DovecotSpec(config="/d.conf", mask="*@example.com")),
    (
        "ldaps://ldap.example.com/dc=example,dc=com?mail?one?(mail=*)",
        LdapSpec(
            host="ldap.example.com",
            port=636,
            ldaps=True,
            base="dc=example,dc=com",
            attributes=("mail",),
            scope="one",
            filter="(mail=*)",
        ),
    ),
    (
        {"ldap": "ldap://[::1]:3890/", "bind_dn": "cn=r", "password_file": "pw", "tls": "none"},
        LdapSpec(
            host="::1",
            port=3890,
            ldaps=False,
            base="",
            bind_dn="cn=r",
            password_file="pw",
            tls="none",
        ),
    ),
    (
        "sql:sqlite:/v.db SELECT a FROM b WHERE d = {domain};",
        SqlSpec(driver="sqlite", url="sqlite:/v.db", query="SELECT a FROM b WHERE d = {domain}"),
    ),
    (
        {"sql": "mysql://u@h/d", "query": "SELECT a", "password_file": "pw"},
        SqlSpec(driver="mysql", url="mysql://u@h/d", query="SELECT a", password_file="pw"),
    ),
]


@pytest.mark.parametrize(("written", "meant"), WRITTEN, ids=lambda value: str(value)[:40])
def test_each_kind_is_read(written: object, meant: SourceSpec) -> None:
    """A text or a table names one source with its options."""
    assert parse_source(written) == meant


WRONG = [
    (5, "is no source"),
    ("users.txt", "does not say what it is"),
    ("mongodb:x", "not a kind of source"),
    ("file:", "no file is named"),
    ("file:u?colour=red", "colour is not an option of file"),
    ("file:u?may_be_empty=perhaps", "neither yes nor no"),
    ("file:u?a=1&a=2", "stands twice"),
    ("file:u?a", "cannot read ?a"),
    ("csv:p?delimiter=ab", "not one character"),
    ("csv:p?column=1,mail", "mixes names and numbers"),
    ("postfix:/etc/postfix/virtual", "not a table that can be listed"),
    ("postfix:mysql:/etc/postfix/m.cf", "not a table that can be listed"),
    ("passwd:?uid=9-1", "not a range"),
    ("dovecot:?mask=-D", "no user mask"),
    ("ldap:people", "no LDAP URL"),
    ("ldap://h/b?mail?everything", "no scope"),
    ("ldap://h/b?mail?sub?mail=*", "no filter"),
    ("ldap://h/b?m()ail", "no attribute"),
    ("ldap://reader:pw@h/b", "name or password in the URL"),
    ({"ldap": "ldap://h/b", "bind_dn": "cn=r"}, "belong together"),
    ({"ldap": "ldaps://h/b", "tls": "starttls"}, "starttls over ldaps"),
    ("sql:oracle://h SELECT 1", "no SQL database"),
    ("sql:postgresql://u:pw@h/d SELECT 1", "password in the URL"),
    ("sql:postgresql://u@h/d?password=pw SELECT 1", "password in the URL"),
    ("sql:postgresql://u@h/d", "no query"),
    ({"file": "a", "csv": "b"}, "does not name one source"),
    ({"file": "a", "may_be_empty": 1.5}, "neither a text nor a number"),
]


@pytest.mark.parametrize(("written", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_mistakes_are_named(written: object, said: str) -> None:
    """What cannot be read says what is wrong and what to write."""
    with pytest.raises(SpecError) as caught:
        parse_source(written)
    assert said in caught.value.what
    assert caught.value.remedy


def test_paths_become_absolute() -> None:
    """Every file that a source names starts where the configuration is."""

    def absolute(path: str) -> str:
        return path if path.startswith("/") else f"/etc/posthouse/{path}"

    def resolved(written: object) -> SourceSpec:
        return resolve_paths(parse_source(written), absolute)

    assert resolved("file:u") == TextSpec(path="/etc/posthouse/u")
    assert resolved("dovecot:") == DovecotSpec()
    sqlite = resolved({"sql": "sqlite:v.db", "query": "SELECT 1"})
    assert isinstance(sqlite, SqlSpec)
    assert sqlite.url == "sqlite:/etc/posthouse/v.db"
    ldap = resolved({"ldap": "ldap://h/b", "bind_dn": "r", "password_file": "pw", "ca_file": "/ca"})
    assert isinstance(ldap, LdapSpec)
    assert (ldap.password_file, ldap.ca_file) == ("/etc/posthouse/pw", "/ca")
    assert describe_source(ldap) == "ldap://h:389/b"

"""What every `Parties` promises: the one that holds hashes, and the fake."""

from __future__ import annotations

import hashlib

import pytest

from fakes.https_stage import FakeParties, party
from posthouse.ports_https import Parties
from posthouse.services.parties import Account, PairedParties


class _Forgetful:
    """Remembers no use."""

    def __contains__(self, digest: object, /) -> bool:
        return False

    def add(self, digest: bytes) -> None:
        pass


def make_paired() -> Parties:
    rows = (("a.example", "token-a", "k"), ("b.example", "token-b", ""))
    return PairedParties(
        [
            Account(
                name=name,
                domains=frozenset({name}),
                token_hashes=(hashlib.sha256(token.encode()).digest(),),
                roster_key_ids=(key,) if key else (),
            )
            for name, token, key in rows
        ],
        _Forgetful(),
    )


def make_fake() -> Parties:
    fake = FakeParties()
    fake.tokens = {
        "token-a": party("a.example", "a.example", key_ids=("k",)),
        "token-b": party("b.example", "b.example"),
    }
    return fake


@pytest.fixture(params=[make_paired, make_fake], ids=["hashes", "fake"])
def parties(request: pytest.FixtureRequest) -> Parties:
    made: Parties = request.param()
    return made


def test_a_token_names_its_party(parties: Parties) -> None:
    """With its domains and the ids of the roster keys it holds."""
    first, second = parties.find("token-a"), parties.find("token-b")
    assert first is not None
    assert second is not None
    assert (first.name, first.domains, first.roster_key_ids) == (
        "a.example",
        frozenset({"a.example"}),
        ("k",),
    )
    assert (second.name, second.roster_key_ids) == ("b.example", ())


@pytest.mark.parametrize("token", ["", "token", "token-aa", "TOKEN-A", " token-a", "\udcff"])
def test_anything_else_is_nobody(parties: Parties, token: str) -> None:
    """Total: never raises."""
    assert parties.find(token) is None

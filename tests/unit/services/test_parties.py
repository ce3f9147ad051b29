"""Tokens: whose they are, and rotation without a gap."""

from __future__ import annotations

import hashlib

from posthouse.errors import StorageBroken
from posthouse.services.parties import Account, PairedParties, find_first_valid


def sha(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Memory:
    """Uses in memory; `broken` makes every write fail."""

    def __init__(self, *used: str) -> None:
        self.used = {sha(token) for token in used}
        self.broken = False

    def __contains__(self, digest: object, /) -> bool:
        return digest in self.used

    def add(self, digest: bytes) -> None:
        self.used.add(digest)
        if self.broken:
            raise StorageBroken("disk gone")


def account(name: str, *tokens: str) -> Account:
    return Account(
        name=name,
        domains=frozenset({f"{name}.example"}),
        token_hashes=tuple(map(sha, tokens)),
        roster_key_ids=tuple(f"key of {token}" for token in tokens),
    )


def test_tokens_name_their_party() -> None:
    """Each token is its party's alone; anything else is nobody's."""
    parties = PairedParties([account("a", "ta"), account("b", "tb")], Memory())
    found = parties.find("tb")
    assert found is not None
    assert (found.name, found.domains, found.roster_key_ids) == (
        "b",
        frozenset({"b.example"}),
        ("key of tb",),
    )
    for wrong in ("", "t", "taa", "TA", sha("ta").hex(), "\udcff"):
        assert parties.find(wrong) is None


def test_both_tokens_are_good_until_the_new_one_is_shown() -> None:
    """Rotation has no gap, and no way back."""
    uses = Memory()
    parties = PairedParties([account("a", "old", "new")], uses)
    assert parties.find("old") is not None
    assert parties.find("old") is not None
    found = parties.find("new")
    assert found is not None
    assert found.roster_key_ids == ("key of new", "key of old")
    assert parties.find("old") is None
    assert parties.find("new") is not None
    after_restart = PairedParties([account("a", "old", "new")], uses)
    assert after_restart.find("old") is None


def test_a_third_token_does_not_void_the_second() -> None:
    """A rotation begun again leaves what is in use good."""
    parties = PairedParties([account("a", "1", "2", "3")], Memory("2"))
    assert parties.find("1") is None
    assert parties.find("2") is not None
    assert parties.find("3") is not None
    assert parties.find("2") is None
    assert find_first_valid([sha("1"), sha("2"), sha("3")], Memory()) == 0
    assert find_first_valid([sha("1"), sha("2"), sha("3")], Memory("1", "2")) == 1


def test_a_failing_disk_locks_nobody_out() -> None:
    """The first use of a token that cannot be noted still lets its party in."""
    uses = Memory()
    uses.broken = True
    assert PairedParties([account("a", "t")], uses).find("t") is not None


def test_reload() -> None:
    """Other accounts can be put in force."""
    parties = PairedParties([account("a", "ta")], Memory())
    parties.set_accounts([account("b", "tb")])
    assert parties.find("ta") is None
    assert parties.find("tb") is not None

"""The granter's book as the servers for Postfix see it, as plain tables."""

from __future__ import annotations

from posthouse.errors import StorageBroken
from posthouse.ports_postfix import AuthFinding, Backing


class FakeGranted:
    """passwords: agreement -> password; expired: agreement -> one-time password.

    backing: agreements in force. unreadable: the book cannot be read.
    """

    def __init__(self) -> None:
        self.passwords: dict[str, str] = {}
        self.expired: dict[str, str] = {}
        self.backing: dict[str, Backing] = {}
        self.unreadable = False
        self.asked: list[str] = []

    def grant(
        self, agreement_id: str, password: str, mailbox: str, *domains: str, forwarder: str = ""
    ) -> None:
        """Put an agreement in force."""
        self.passwords[agreement_id] = password
        self.backing[agreement_id] = Backing(
            agreement_id=agreement_id,
            forwarder_id=forwarder or "mx2.example.net",
            mailbox=mailbox,
            domains=frozenset(domains),
        )

    async def check(self, agreement_id: str, password: str) -> AuthFinding:
        self.asked.append(agreement_id)
        if self.unreadable:
            return AuthFinding.TEMPORARY
        if self.expired.get(agreement_id) == password:
            return AuthFinding.EXPIRED
        good = self.passwords.get(agreement_id) == password
        return AuthFinding.GOOD if good else AuthFinding.BAD

    async def find_backing(self, agreement_id: str) -> Backing | None:
        if self.unreadable:
            raise StorageBroken("the disk is gone")
        return self.backing.get(agreement_id)

"""The passwords of agreements as a plain table (`posthouse.ports_agreements.AgreementSecrets`)."""

from __future__ import annotations

from posthouse.mail.credentials import Credentials

FORWARDER = "mx2.example.net"


class FakeSecrets:
    """address -> credentials; `reported` is what was refused."""

    def __init__(self, **passwords: str) -> None:
        """`alice="one"`: alice@example.com has agreement a-alice with password "one"."""
        self.table = {
            f"{user}@example.com": Credentials(
                agreement_id=f"a-{user}", password=password, forwarder_id=FORWARDER
            )
            for user, password in passwords.items()
        }
        self.reported: list[tuple[str, str]] = []

    def find(self, address: str) -> Credentials | None:
        return self.table.get(address)

    def needs_completion(self, agreement_id: str, why: str) -> None:
        self.reported.append((agreement_id, why))

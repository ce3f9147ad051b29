"""What services need of the books of agreements, each with its promise (PROTOCOL.md §3)."""

from __future__ import annotations

from typing import Protocol

from posthouse.mail.credentials import Credentials


class AgreementSecrets(Protocol):
    """The passwords of our agreements, for SMTP AUTH at next hops. Called in the event loop."""

    def find(self, address: str) -> Credentials | None:
        """Credentials of the agreement that covers a recipient, None when there is none.

        address: as the client gave it; the book folds it. Only agreements that are `agreed`
        and whose password is not known to be refused. Takes microseconds, never raises.
        """

    def needs_completion(self, agreement_id: str, why: str) -> None:
        """Take word that the granter refused the password (535 or 432): it must be set anew.

        Until then `find` should not give these credentials. Never blocks, never raises.
        why: the reply, one line.
        """

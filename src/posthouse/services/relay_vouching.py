"""Under which agreement a message goes, and what a next hop's answers to SMTP AUTH mean.

AUTH never stops mail: what was refused goes without. Every refusal counts
against us in the next hop's fail2ban, and a server may advertise AUTH and
refuse all of it, hang, or hang up at the very command. So:

===========================  ==================================================
answer                       what follows (RFC 4954 §6)
===========================  ==================================================
235                          all pauses of that next hop end
535, 432                     the password is not used again; the agreement is
                             completed anew (PROTOCOL.md §3); the third in a
                             row at one next hop: no AUTH there for 15 minutes
4xx, 454 above all           no AUTH there for a minute
another 5xx (534, 538 …)     no AUTH there for 15 minutes
none, the session broke      no AUTH there for 15 minutes
===========================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from posthouse import observe
from posthouse.mail.credentials import Credentials
from posthouse.ports_agreements import AgreementSecrets
from posthouse.ports_relay import Target
from posthouse.ports_spool import QueuedMessage

LONG_US: Final = 900_000_000
SHORT_US: Final = 60_000_000
MAX_PASSWORDS: Final = 3  # fail2ban's postfix-sasl jail bans at 5 (maxretry)
MAX_TARGETS: Final = 1000
MAX_REFUSED: Final = 10_000

K = TypeVar("K")
V = TypeVar("V")

_ACCEPTED: Final = 235
_ABOUT_THE_PASSWORD: Final = frozenset({535, 432})


class Vouching:
    """See the module. active: False when there are no agreements at all."""

    def __init__(self, secrets: AgreementSecrets | None, clock_us: Callable[[], int]) -> None:
        self.active = secrets is not None
        self._secrets = secrets
        self._clock_us = clock_us
        self._pauses: dict[Target, int] = {}  # until when
        self._strikes: dict[Target, int] = {}  # passwords refused in a row
        self._refused: dict[str, str] = {}  # agreement -> the password that is no good

    def find(self, target: Target, message: QueuedMessage) -> Credentials | None:
        """Credentials for a message: those of its first recipient that has an agreement.

        One transaction has one AUTH=; all agreements of it are of one forwarder, and that
        is whom the next hop trusts.
        """
        return self.find_for(target, [recipient.address for recipient in message.recipients])

    def find_for(self, target: Target, addresses: Iterable[str]) -> Credentials | None:
        """The same, for recipients by their addresses."""
        secrets = self._secrets
        if secrets is None or self._pauses.get(target, 0) > self._clock_us():
            return None
        for address in addresses:
            found = secrets.find(address)
            if found is not None and self._refused.get(found.agreement_id) != found.password:
                return found
        return None

    def answered(self, target: Target, credentials: Credentials, code: int, text: str) -> None:
        """Take the next hop's last word to AUTH."""
        if code == _ACCEPTED:
            self._pauses.pop(target, None)
            self._strikes.pop(target, None)
            return
        agreement = credentials.agreement_id
        observe.note(
            "relay",
            f"{target.host}[{target.address}] refused AUTH: {code} {text}; mail goes without",
            agreement=agreement,
            next_hop=target.host,
        )
        if code not in _ABOUT_THE_PASSWORD:
            self._pause(target, SHORT_US if 400 <= code < 500 else LONG_US)
            return
        _bounded(self._refused, agreement, credentials.password, MAX_REFUSED)
        strikes = self._strikes.pop(target, 0) + 1
        if strikes >= MAX_PASSWORDS:
            self._pause(target, LONG_US)
        else:
            _bounded(self._strikes, target, strikes, MAX_TARGETS)
        if self._secrets is not None:
            self._secrets.needs_completion(agreement, f"{code} {text}")

    def broke(self, target: Target) -> None:
        """A session ended while AUTH had no answer."""
        self._pause(target, LONG_US)

    def _pause(self, target: Target, span_us: int) -> None:
        _bounded(self._pauses, target, self._clock_us() + span_us, MAX_TARGETS)


def _bounded(table: dict[K, V], key: K, value: V, limit: int) -> None:
    table.pop(key, None)
    if len(table) >= limit:
        del table[next(iter(table))]
    table[key] = value

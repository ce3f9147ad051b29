"""What a person should see: alerts, the ways they are told, and the log of availability.

An alert is a condition that lasts: `kind` and `subject` name it, and it stands
from `raise_` until `clear`. Both say what *is*, not what happened, so calling
them again, in any order and from several places, does no harm. What was raised
and when, and what was told to whom, is the business of the one who stores them
(the control process); whoever notices a condition only says so.

Instants are integer microseconds since 1970, UTC.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from posthouse.tally import Tally


class AlertKind(enum.StrEnum):
    """The kinds there are; the values are what operators filter by. New ones may be added."""

    NEXT_HOP_DOWN = "next-hop-down"
    NEXT_HOP_BLOCKED = "next-hop-blocked"  # 5xx about us, not about a message or a user
    NO_BETTER_MX = "next-hop-held"  # DNS leaves nobody to send to
    DRAIN_STOPPED = "drain-stopped"
    MAIL_HELD = "mail-held"
    LIST_STALE = "list-stale"
    DISK_LOW = "disk-low"
    QUOTA_FULL = "quota-full"
    CERTIFICATE = "certificate"
    OLDEST_MESSAGE = "oldest-message"
    CONTACT = "contact"  # alerts cannot be told by mail
    STORAGE = "storage"
    CLOCK = "clock"  # it went by leaps, or differs from a paired primary's


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One condition, as whoever noticed it describes it.

    kind: an `AlertKind`, or another word of a-z, 0-9 and "-". subject: what it is
    about, e.g. a next hop or a domain; with kind it names the alert. text: what
    happened, what_to_do: the remedy, one line each, no control characters of a
    stranger (`log_sink.clean`). since_us: since when it is so.
    """

    kind: str
    subject: str
    text: str
    what_to_do: str = ""
    since_us: int = 0


class AlertSink(Protocol):
    """Takes what is noticed. Never blocks, never raises; to be called from the event loop.

    Promise: a condition that stands for as long as the operator wants to wait
    (`alerts.delay`) is told once on every way that is configured, and once more
    when it is over. In a worker what is raised here stands in its status, where
    the control process reads it every few seconds.
    """

    def raise_(
        self, kind: str, subject: str, text: str, what_to_do: str, *, since_us: int = 0
    ) -> None:
        """Say that it is so. Again with another text: the text is brought up to date.

        since_us 0: since now, or since it was raised first.
        """

    def clear(self, kind: str, subject: str) -> None:
        """Say that it is over. Harmless when it never was."""


class StoredAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as it is kept. number: ascending, for programs; over_us None: it stands."""

    number: int
    alert: Alert
    raised_us: int
    over_us: int | None = None


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What one delivery tells: alerts that began or ended since the one before, oldest first.

    number: of this notice on its way; the same when it is tried again.
    """

    node: str
    number: int
    alerts: tuple[StoredAlert, ...]
    made_us: int


class AlertChannel(Protocol):
    """One way to tell a person: mail, webhook, command."""

    name: str

    async def deliver(self, notice: Notice) -> None:
        """Tell it. Returns when it was taken in charge. Raises `errors.TellingFailed`."""


# --------------------------------------------------------------------------- availability


class Reason(enum.StrEnum):
    """Why a next hop takes no mail, in the words of the report."""

    NONE = ""
    REFUSED = "refused"  # nobody listens
    TIMEOUT = "timeout"
    LOST = "connection lost"
    TLS = "TLS"
    TEMPORARY = "4xx"
    PERMANENT = "5xx"
    DNS = "DNS"
    NO_BETTER_MX = "no better MX"
    OPERATOR = "operator"
    OTHER = "other"


class AvailabilityLog(Protocol):
    """The history of every next hop, kept for months; written by one process a node.

    Never blocks, never raises; to be called from the event loop.
    """

    def note(
        self,
        next_hop: str,
        domains: Sequence[str],
        *,
        up: bool,
        reason: Reason,
        why: str,
        since_us: int,
    ) -> None:
        """Say what state a next hop is in since when. The same again costs nothing.

        why: one line with the peer's words; reason NONE when up.
        """


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of time in which a next hop took no mail. to_us None: it lasts.

    reasons: in the order in which they came, each once. why: the peer's last words.
    meanwhile: what happened to the domain's mail during it.
    """

    next_hop: str
    reasons: tuple[Reason, ...]
    why: str
    from_us: int
    to_us: int | None
    meanwhile: Tally


class DomainHistory(msgspec.Struct, frozen=True, kw_only=True):
    """One domain in some time. watched_us: how much of it a node ran and looked."""

    outages: tuple[Outage, ...]
    tally: Tally
    next_hops: tuple[str, ...]
    watched_us: int


class TallyBook(Protocol):
    """Where the workers write what they counted; every worker its own rows.

    Blocks: call it in a thread. Raises StorageError.
    """

    def add(self, worker: int, counts: Mapping[str, Tally], *, now_us: int) -> None:
        """Add counts by domain to the hour of `now_us`. All or nothing."""


class AvailabilityStore(TallyBook, Protocol):
    """The history of next hops and domains, kept for 400 days.

    All methods block: call them in a thread, one at a time. They raise StorageError.
    """

    def watched(self, *, now_us: int, fresh: bool) -> None:
        """A node runs and looks. fresh: it has just begun to."""

    def follow(self, next_hop: str, domains: Sequence[str], *, now_us: int) -> None:
        """These domains' mail goes to that next hop."""

    def open_outages(self) -> Sequence[Outage]:
        """Those that last, with no counts."""

    def begin_outage(self, next_hop: str, reason: Reason, why: str, *, from_us: int) -> None:
        """It takes no mail since then. One that lasts goes on."""

    def explain_outage(self, next_hop: str, reason: Reason, why: str) -> None:
        """It goes on, for this reason now."""

    def end_outage(self, next_hop: str, *, to_us: int) -> None:
        """It takes mail again since then. Harmless when there is none."""

    def read(self, domain: str, *, from_us: int, to_us: int) -> DomainHistory:
        """What is known of a domain; tallies by the hour, in UTC."""

    def prune(self, *, before_us: int) -> None:
        """Forget what ended before that."""


class AlertStore(Protocol):
    """Where alerts and what was told of them outlive the process; one writer.

    All methods block: call them in a thread, one at a time. They raise StorageError.
    What they change is durable when they return.
    """

    def load_standing(self) -> Sequence[tuple[StoredAlert, bool]]:
        """Alerts that are not over, and whether each was announced."""

    def begin(self, alerts: Sequence[Alert], *, now_us: int) -> Sequence[StoredAlert]:
        """Store new ones, in this order. An alert of that kind and subject may not stand."""

    def update(self, number: int, alert: Alert) -> None:
        """Bring the words up to date."""

    def announce(self, numbers: Sequence[int]) -> None:
        """They are to be told: every channel finds them behind what it told last."""

    def end(self, numbers: Sequence[int], *, over_us: int) -> None:
        """They are over; those that were announced are to be told once more."""

    def find_news(self, after: int, limit: int) -> tuple[Sequence[StoredAlert], int]:
        """What began or ended behind `after`, each alert once, as it is now; and how far it goes.

        Returns ((), after) when there is nothing.
        """

    def get_channel(self, name: str) -> ChannelRecord:
        """How far a channel is; a new one begins behind all there is."""

    def save_channel(self, name: str, record: ChannelRecord) -> None:
        """Remember how far it is."""

    def list_alerts(self, *, everything: bool, limit: int) -> Sequence[StoredAlert]:
        """Those that stand, or all there are, the newest first."""

    def find_new_held(self, keys: Iterable[HeldKey]) -> Sequence[HeldKey]:
        """Those the digest has not told."""

    def save_digest(self, held: Iterable[HeldKey], *, now_us: int) -> None:
        """A digest was told; `held` are all that are on hold, and no others are remembered."""

    def last_digest_us(self) -> int:
        """When one was told last; 0: never."""

    def prune(self, *, before_us: int) -> None:
        """Forget alerts that were over before that."""


class ChannelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """told: the last news told. last_us: when. The rest is about a notice that fails now.

    notices: how many were told. failing_since_us 0: none fails.
    """

    told: int = 0
    last_us: int = 0
    notices: int = 0
    attempts: int = 0
    due_us: int = 0
    failing_since_us: int = 0
    trouble: str = ""


HeldKey = tuple[int, int, int]
"""Queue id, seq, since when it is held: one recipient on hold."""

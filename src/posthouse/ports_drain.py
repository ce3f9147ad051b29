"""One state per next hop for the whole node: who decides it, who follows, who only asks.

A next hop is named by its key (`domain.nexthop.next_hop_key`). The control
process decides (`services.nexthops`); each relay follows. Values here go over
the socket between them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from posthouse.domain.drain import Event, Health, State


class NextHopView(msgspec.Struct, frozen=True, kw_only=True):
    """One next hop as anybody may see it. since_us: when it came into the state."""

    next_hop: str
    domains: tuple[str, ...]
    state: State
    since_us: int
    why: str = ""
    next_probe_us: int | None = None
    guarded: bool = True

    @property
    def takes_mail(self) -> bool:
        """It was seen to answer, and nothing speaks against sending to it now."""
        return self.state in (State.UP, State.CANARY, State.DRAINING)


class NextHopStates(Protocol):
    """What is known of the next hops. Costs a look into memory; never blocks, never raises."""

    def state_of(self, next_hop: str) -> NextHopView | None:
        """By key; None when there is no such next hop, or nothing was heard of it yet."""

    def of_domain(self, domain: str) -> NextHopView | None:
        """The next hop of a backed-up domain."""

    def all_states(self) -> Sequence[NextHopView]:
        """Every next hop, by key."""

    def watch(self, listener: Callable[[NextHopView], None]) -> None:
        """Have `listener` called in the event loop after each change of a state or its reason."""

    def retry(self, domain: str | None = None) -> None:
        """Look now: probe what is not up (one domain's next hop, or all). ETRN, the operator."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay has to do about one next hop, until the next order.

    canary: in state CANARY, this relay is the one that sends. rest: others deliver there
    though we cannot: try again after a probe interval.
    """

    next_hop: str
    health: Health
    canary: bool = False
    rest: bool = False
    next_probe_us: int | None = None


class Experience(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay learned about one next hop.

    event: LOST, REFUSED, NO_WAY, PROVEN, DRAINED, SURGE, or None for counts only.
    round: of the order in force when it was learned. probe_delay_us: probe after this, not
    after the interval. delivered, refused: replies since the last word (refused: for good).
    known: addresses known to exist, of the mail that has waited longest.
    """

    next_hop: str
    event: Event | None = None
    why: str = ""
    round: int = 0
    probe_delay_us: int | None = None
    delivered: int = 0
    refused: int = 0
    known: tuple[str, ...] = ()


class Follower(Protocol):
    """A relay's side of one next hop."""

    def obey(self, order: Order) -> None:
        """Do so from now on. Called in the event loop; never raises."""


class NextHopAuthority(NextHopStates, Protocol):
    """Who decides. Calls never block; orders come by `Follower.obey`, possibly at once."""

    def follow(self, next_hop: str, follower: Follower) -> None:
        """Begin to follow; the first order comes as soon as the state is known."""

    def leave(self, next_hop: str, follower: Follower) -> None:
        """Follow no longer. Harmless when repeated."""

    def tell(self, follower: Follower, experience: Experience) -> None:
        """Say what was learned. Lossy while the authority cannot be reached."""


class NextHopRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one next hop over a restart."""

    next_hop: str
    health: Health


class NextHopBook(Protocol):
    """Where states outlive the process. Swapped whole: a crash leaves the one or the other."""

    def load(self) -> Sequence[NextHopRecord]:
        """What was saved last; () when there is nothing or it cannot be read (reported)."""

    def save(self, records: Sequence[NextHopRecord]) -> None:
        """Make it durable. Blocks: call it in a thread. Raises StorageError."""


# --------------------------------------------------------------------------- over the socket


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """A relay begins to follow. seat: its number for this next hop on this connection.

    delivering: it delivered there a moment ago (the control process is new, we are not).
    """

    seat: int
    next_hop: str
    delivering: bool = False


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """The relay of a seat follows no longer."""

    seat: int


class Told(msgspec.Struct, frozen=True, tag="told"):
    """What the relay of a seat learned."""

    seat: int
    experience: Experience


class Retry(msgspec.Struct, frozen=True, tag="retry"):
    """Probe now; "" = everything that is not up."""

    domain: str = ""


class Show(msgspec.Struct, frozen=True, tag="show"):
    """The operator asks: answered by `Shown`."""


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """The operator suspends next hops, by key: answered by `Shown` once it is durable."""

    next_hops: tuple[str, ...]
    why: str


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """The operator goes on: answered by `Shown` once it is durable."""

    next_hops: tuple[str, ...]
    guarded: bool = True


class Ordered(msgspec.Struct, frozen=True, tag="ordered"):
    """An order for the relay of a seat."""

    seat: int
    order: Order


class Shown(msgspec.Struct, frozen=True, tag="shown"):
    """All next hops. durable: what was asked for is written down."""

    next_hops: tuple[NextHopView, ...]
    durable: bool = True


Request = Follow | Leave | Told | Retry | Show | Pause | Resume
Reply = Ordered | Shown

MAX_LINE_BYTES: Final = 1 << 20

_encoder: Final = msgspec.json.Encoder()
_requests: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_replies: Final[msgspec.json.Decoder[Reply]] = msgspec.json.Decoder(Reply)


def encode_line(message: Request | Reply) -> bytes:
    """One line of JSON with its LF."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises ValueError (msgspec's errors are) for anything else."""
    return _requests.decode(line)


def decode_reply(line: bytes) -> Reply:
    """Raises ValueError for anything else."""
    return _replies.decode(line)


class DrainLine(Protocol):
    """A relay process's line to the control process; connects again by itself."""

    def open(
        self,
        *,
        up: Callable[[], None],
        heard: Callable[[Reply], None],
        lost: Callable[[], None],
    ) -> None:
        """Begin; `up`, `heard` and `lost` are called in the event loop."""

    def send(self, message: Request) -> None:
        """Say it; lost when there is no line. Never blocks."""

    async def close(self) -> None:
        """End."""

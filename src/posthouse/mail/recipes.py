"""What a forwarder and a granter say to each other, as values (PROTOCOL.md §3).

Plain words shared by every room; `proto/agreement_wire` has their octets. The
names are those of fixforwarding.org: a *recipe* is what the forwarder holds for
one mailbox, an *agreement* what the granter holds for it.
"""

from __future__ import annotations

import enum
import re
from typing import Final, Literal

import msgspec

CATEGORY: Final = "backup MX"
MAX_RECIPES: Final = 1000
MAX_HOPS: Final = 8
# Of every identifier: recipe_id, agreement_id.
ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")

Actor = Literal["granter", "user"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """One mailbox an agreement is asked for.

    recipe_key: at least 128 random bits, one for each recipe; whoever shows it speaks for
    the granter. address: in the client's spelling or its canonical text. seen_us: when the
    first message for it was accepted, 0: not told.
    """

    recipe_id: str
    recipe_key: str
    name: str
    address: str
    seen_us: int = 0

    def __repr__(self) -> str:
        return f"Recipe({self.recipe_id} for {self.address})"  # never the key


class AgreementRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One POST to `v1/agreements`: 1 to 1,000 recipes."""

    forwarder_id: str
    category: str
    policy_negotiation_url: str
    recipes: tuple[Recipe, ...]


class Status(enum.StrEnum):
    """What became of one recipe."""

    GRANTED = "granted"
    PENDING = "pending"
    REFUSED = "refused"
    NO_SUCH_USER = "no_such_user"


class RecipeResult(msgspec.Struct, frozen=True, kw_only=True):
    """The granter's answer for one recipe; "" and None where a member is absent."""

    recipe_id: str
    status: Status
    agreement_id: str = ""
    completion_url: str = ""
    password: str = ""
    user_id: str = ""
    retry_after_seconds: int | None = None

    def __repr__(self) -> str:
        return f"RecipeResult({self.recipe_id}: {self.status})"  # never the password


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One POST to the completion URL. None and False where a member is absent."""

    forwarder_id: str
    agreement_id: str
    password: str
    new_password: str | None = None
    feedback_address: str | None = None
    terminate: bool = False

    def __repr__(self) -> str:
        return f"Completion({self.agreement_id})"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `set` asks for; None where a keyword is absent."""

    blocked: bool | None = None
    ended: bool | None = None
    reset_password: str | None = None


class PolicyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One POST to the policy negotiation URL: `get` keywords, or `set`, never both.

    agreement_id: None for null. visited: parties a `servers` question has reached so far.
    """

    recipe_id: str
    recipe_key: str
    agreement_id: str | None
    actor: Actor
    get: tuple[str, ...] | None = None
    set: Settings | None = None
    visited: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"PolicyRequest({self.recipe_id})"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """One server that stores an address; `error` says why a party could not be asked."""

    party: str
    host: str = ""
    preference: int = 0
    since_us: int = 0
    messages: int = 0
    last_message_us: int = 0
    error: str = ""


_ERRORS: Final = {
    "url": "it has moved, and has not told where to",
    "dns": "its name is not found",
    "connect": "it cannot be reached",
    "tls": "its certificate is not the one agreed on",
    "timeout": "no answer in time",
    "protocol": "its answer makes no sense",
    "redirect": "it sent us elsewhere",
    "too_large": "its answer is too large",
}


def tell_error(error: str) -> str:
    """Why a party could not be asked, in words where it is one of the stages of PeerFailure."""
    return _ERRORS.get(error, error)


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What passed for one address. last_message_us 0: nothing yet."""

    messages: int = 0
    bytes: int = 0
    last_message_us: int = 0


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Present values; None where a keyword was neither asked nor set."""

    blocked: bool | None = None
    ended: bool | None = None
    reset_password: str | None = None
    dnsbl: tuple[str, ...] | None = None
    spf: bool | None = None
    traffic: Traffic | None = None
    servers: tuple[Holder, ...] | None = None


class Denial(enum.Enum):
    """Why a request is refused whole, with the HTTP status of PROTOCOL.md §0."""

    MALFORMED = 400
    FORBIDDEN = 403
    NOT_FOUND = 404
    CONFLICT = 409
    TOO_LARGE = 413
    UNPROCESSABLE = 422
    TOO_MANY = 429
    UNAVAILABLE = 503


class Refusal(msgspec.Struct, frozen=True):
    """A refused request, as a value. retry_after_seconds: with TOO_MANY and UNAVAILABLE."""

    denial: Denial
    detail: str
    retry_after_seconds: int | None = None

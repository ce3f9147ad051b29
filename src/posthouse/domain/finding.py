"""What a recipient directory knows of one local part."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from posthouse.mail.roster import RosterLimits


class Finding(enum.Enum):
    """What is known; the reply to it is decided in `domain/verdict`."""

    VOUCHED = "vouched"  # exists: a line of a text file, a digest of a roster
    CATCH_ALL = "catch_all"  # the domain takes every local part
    RULE = "rule"  # a rule of the roster takes it
    TRAP = "trap"  # a honeypot: answered like any other
    DEFER = "defer"  # the primary wants it to come back later
    ABSENT = "absent"  # not there; proven so unless the answer is stale
    UNKNOWN = "unknown"  # no list, none loaded yet, or no answer to be had now


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The answer to one look-up.

    stale: the list has expired: it vouches, but proves no absence. canonical: the
    text whose digest was found (fold text@domain), "" otherwise. serial: of the
    roster, 0 for other lists. when_stale: what its owner wishes where it is stale.
    withheld: UNKNOWN because nobody looked: too many look-ups wait ("busy"), or the
    client's network has guessed too much ("guessed"). limits: what the primary takes.
    """

    finding: Finding
    stale: bool = False
    canonical: str = ""
    serial: int = 0
    when_stale: Literal["defer", "hold"] = "defer"
    withheld: Literal["", "busy", "guessed"] = ""
    limits: RosterLimits | None = None

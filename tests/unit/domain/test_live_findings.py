"""What replies to RCPT tell of an address: the module's table, and ages."""

from __future__ import annotations

import pytest

from posthouse.domain.live_check import (
    NEGATIVE_US,
    POSITIVE_US,
    REFRESH_US,
    Entry,
    LiveFinding,
    Probe,
    Standard,
    Use,
    classify_probe,
    decide_finding,
    judge_age,
)

TAKEN, UNKNOWN, WORDS, OTHER = (
    Probe.TAKEN,
    Probe.UNKNOWN,
    Probe.UNKNOWN_IN_WORDS,
    Probe.OTHER,
)


@pytest.mark.parametrize(
    ("code", "text", "probe"),
    [
        (250, "2.1.5 ok", TAKEN),
        (251, "will forward", TAKEN),
        (252, "cannot tell", OTHER),
        (354, "go on", OTHER),
        (550, "5.1.1 User unknown", UNKNOWN),
        (550, "5.1.10 RecipientNotFound", UNKNOWN),
        (551, "5.1.6 moved", UNKNOWN),
        (550, "no mailbox here by that name (#5.1.1)", UNKNOWN),
        (553, "5.1.8 Sender address rejected: Domain not found", OTHER),
        (550, "5.1.7 bad sender", OTHER),
        (550, "5.7.1 User unknown, or so we say to spammers", OTHER),
        (550, "5.2.1 mailbox disabled", OTHER),
        (552, "5.2.2 over quota", OTHER),
        (550, "5.4.1 Recipient address rejected: Access denied", OTHER),
        (554, "5.7.1 Relay access denied", OTHER),
        (550, "Unrouteable address", WORDS),
        (550, "unknown user", WORDS),
        (550, "sorry, no mailbox here by that name", WORDS),
        (554, "user unknown", OTHER),
        (550, "go away", OTHER),
        (550, "rejected because 192.0.2.1 is in a black list", OTHER),
        (450, "4.1.1 User unknown in local recipient table", OTHER),
        (451, "4.7.1 Greylisted", OTHER),
        (421, "4.3.2 shutting down", OTHER),
    ],
)
def test_replies(code: int, text: str, probe: Probe) -> None:
    """Only RCPT-stage 5.1.x about the recipient, or well-known words without a code."""
    assert classify_probe(code, text) is probe


EXISTS, ABSENT, UNDECIDED = LiveFinding.EXISTS, LiveFinding.ABSENT, LiveFinding.UNDECIDED


@pytest.mark.parametrize(
    ("random", "postmaster", "last", "probe", "finding"),
    [
        (UNKNOWN, TAKEN, None, TAKEN, EXISTS),
        (WORDS, OTHER, TAKEN, TAKEN, EXISTS),
        (TAKEN, TAKEN, TAKEN, TAKEN, UNDECIDED),  # takes everybody
        (OTHER, TAKEN, TAKEN, TAKEN, UNDECIDED),  # greylists: nothing is known of it yet
        (UNKNOWN, TAKEN, None, UNKNOWN, ABSENT),
        (TAKEN, TAKEN, TAKEN, UNKNOWN, ABSENT),  # a no counts even then
        (UNKNOWN, UNKNOWN, None, UNKNOWN, ABSENT),  # many have no postmaster
        (UNKNOWN, UNKNOWN, TAKEN, UNKNOWN, ABSENT),
        (UNKNOWN, TAKEN, UNKNOWN, UNKNOWN, ABSENT),  # that one user was deleted
        (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNDECIDED),  # it lost its users
        (UNKNOWN, OTHER, WORDS, UNKNOWN, UNDECIDED),
        (WORDS, TAKEN, None, WORDS, ABSENT),
        (WORDS, WORDS, None, WORDS, UNDECIDED),  # it may mean us
        (WORDS, OTHER, TAKEN, WORDS, UNDECIDED),
        (UNKNOWN, TAKEN, TAKEN, OTHER, UNDECIDED),
        (OTHER, OTHER, OTHER, OTHER, UNDECIDED),
    ],
)
def test_table(
    random: Probe, postmaster: Probe, last: Probe | None, probe: Probe, finding: LiveFinding
) -> None:
    """Each row, and what stands between them."""
    standard = Standard(random=random, postmaster=postmaster, last_taken=last)
    assert decide_finding(probe, standard) is finding


def test_ages() -> None:
    """31 days with a refresh after 7, two hours for a no; a clock set back makes nothing old."""
    at = 10**15
    for exists, age_us, use in [
        (True, 0, Use.FRESH),
        (True, REFRESH_US - 1, Use.FRESH),
        (True, REFRESH_US, Use.AGING),
        (True, POSITIVE_US - 1, Use.AGING),
        (True, POSITIVE_US, Use.EXPIRED),
        (False, NEGATIVE_US - 1, Use.FRESH),
        (False, NEGATIVE_US, Use.EXPIRED),
        (False, -5, Use.FRESH),
        (False, -NEGATIVE_US, Use.EXPIRED),  # else it would stand until that time came again
        (True, -NEGATIVE_US, Use.AGING),
    ]:
        assert judge_age(Entry(exists, at), at + age_us) is use

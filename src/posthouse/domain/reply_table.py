"""What each kind of reply means: the whole decision as one table.

Nobody is bounced: what is final is *held* with the reply and a reason word,
for a person to see. The first row of `ROWS` that matches the stage, the code,
and the enhanced code or the text, wins (`replies` does the matching).
`docs/replies.md` is printed from it (`posthouse.domain.replies_text`).

An enhanced code (RFC 2034, RFC 3463) outranks the text; texts are for servers
that send none. Greylisting and rate limits are known by their texts whatever
code stands beside them, since servers do not agree on one.

Spec: RFC 5321 §4.2, §4.3.2; RFC 3463; RFC 5248 and its registry at IANA.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple


class Fate(enum.Enum):
    """DELIVERED, DEFERRED (by schedule), HELD (with the reply), BLOCKED (next hop refuses us)."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    HELD = "held"
    BLOCKED = "blocked"


class Effect(enum.Enum):
    """What a reply tells of the next hop as a whole.

    NONE     nothing
    SLOWER   it wants less at a time: pause, fewer sessions
    TROUBLE  its system is unwell: five in a row without a delivery make it down
    UNCLEAR  it refuses us, or only this sender: a quick probe tells
    """

    NONE = "nothing"
    SLOWER = "slower"
    TROUBLE = "trouble"
    UNCLEAR = "unclear"


class Meaning(NamedTuple):
    """reason: a word for filters and digests, "" when delivered."""

    fate: Fate
    reason: str
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    stages: () = any. codes: basic codes, or their first digit; () = any. enhanced:
    prefixes of the enhanced code without its class, "1.1" or "6." or "-" for a reply that
    has none; texts: substrings in lower case. With both, either is enough; with neither,
    stage and code decide. beside: texts count beside any enhanced code, not only where
    there is none or a vague one (x.0.0, x.7.1, x.5.0).
    """

    stages: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    enhanced: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    beside: bool = False
    fate: Fate
    reason: str
    effect: Effect = Effect.NONE
    source: str

    @property
    def meaning(self) -> Meaning:
        """What it means."""
        return Meaning(self.fate, self.reason, self.effect)


_LATE: Final = ("rcpt", "data", "dot")
_BODY: Final = ("data", "dot")
NO_CODE: Final = "-"  # in `enhanced`: a reply that has none

ROWS: Final = (
    Row(codes=(2,), fate=Fate.DELIVERED, reason="", source="RFC 5321 §4.2.1"),
    # ------------------------------------------------------------ temporary
    Row(
        stages=("rcpt",),
        codes=(452, 552),
        enhanced=("5.3", NO_CODE),
        texts=("too many recipients",),
        fate=Fate.DEFERRED,
        reason="too-many",
        source='RFC 5321 §4.5.3.1.10: "too many recipients" is 452, was 552 once; the rest goes '
        "at once in a transaction of its own where some of them were taken",
    ),
    Row(
        stages=("greeting", "ehlo", "mail", *_LATE),
        codes=(4,),
        texts=(
            "too much mail",
            "too many connections",
            "too many concurrent",
            "too many messages",
            "too many recipients from",
            "too many new recipients",
            "rate limit",
            "ratelimit",
            "rate exceeded",
            "unusual rate",
            "throttl",
            "sending too fast",
            "slow down",
            "server busy",
            "ports are busy",
            "temporarily deferred due to",
        ),
        beside=True,
        fate=Fate.DEFERRED,
        reason="rate-limited",
        effect=Effect.SLOWER,
        source="Postfix anvil(8): 450 4.7.1 too much mail, 421 4.7.0 too many connections; "
        "sendmail: 421 4.3.2 connection rate limit exceeded; postscreen: 421 4.3.2 all server "
        "ports are busy; Exim: too many concurrent SMTP connections; Gmail: 421 4.7.28 unusual "
        "rate; Yahoo: 421 4.7.0 [TSS04] temporarily deferred due to …; Exchange Online: 451 "
        "4.7.500 server busy",
    ),
    Row(
        stages=("mail", *_LATE),
        codes=(4,),
        texts=("greylist", "graylist", "grey list", "gray list", "grey-list"),
        beside=True,
        fate=Fate.DEFERRED,
        reason="greylisted",
        source="RFC 6647 §2; postgrey: 450 4.2.0, SQLgrey and policyd: 450 4.7.1, milter-greylist "
        "and Rspamd: 451 4.7.1, greylistd for Exim: 451 without a code; all say so in words",
    ),
    Row(
        stages=_BODY,
        codes=(500, 502, 504),
        fate=Fate.DEFERRED,
        reason="not-understood",
        effect=Effect.SLOWER,
        source="RFC 5321 §4.2.4: the server does not know the command, whatever it offered (BDAT "
        "of RFC 3030); it says nothing of the mail, which goes again by DATA",
    ),
    Row(
        stages=("mail", *_LATE),
        codes=(421,),
        fate=Fate.DEFERRED,
        reason="rate-limited",
        effect=Effect.SLOWER,
        source="RFC 5321 §3.8, §4.2.3: the channel closes; large primaries say it instead of a "
        "limit's name",
    ),
    Row(
        stages=("mail", *_LATE),
        codes=(4,),
        enhanced=("7.0", "3.2", "7.28"),
        fate=Fate.DEFERRED,
        reason="rate-limited",
        effect=Effect.SLOWER,
        source="RFC 3463 §3.4 (4.3.2: not accepting network messages), §3.8; postscreen(8): 450 "
        "4.3.2 at RCPT until the client comes again; Gmail: 4.7.0, 4.7.28",
    ),
    Row(
        stages=_LATE,
        codes=(450, 451),
        enhanced=("7.1",),
        fate=Fate.DEFERRED,
        reason="greylisted",
        source="RFC 6647 §5: 4.7.1 with 450 or 451; Rspamd: 451 4.7.1 Try again later",
    ),
    Row(
        stages=_LATE,
        codes=(450, 451, 452, 422),
        enhanced=("2.2",),
        texts=("over quota", "overquota", "quota exceeded", "mailbox full", "mailbox is full"),
        fate=Fate.DEFERRED,
        reason="over-quota",
        source="RFC 3463 §3.3 (x.2.2 mailbox full); Gmail: 452 4.2.2, Dovecot LMTP: 452 4.2.2 "
        "Quota exceeded",
    ),
    Row(
        stages=("mail",),
        codes=(4,),
        enhanced=("1.",),
        fate=Fate.DEFERRED,
        reason="sender",
        source="RFC 3463 §3.2: x.1.7, x.1.8 are about this sender; Postfix: 450 4.1.8 Domain not "
        "found",
    ),
    Row(
        stages=("mail",),
        codes=(450, 451),
        enhanced=("7.", NO_CODE),
        fate=Fate.DEFERRED,
        reason="refused-for-now",
        effect=Effect.UNCLEAR,
        source="RFC 3463 §3.8 (policy): of us or of one sender, as RFC 5321 gives no way to tell",
    ),
    Row(
        stages=("mail",),
        codes=(4,),
        fate=Fate.DEFERRED,
        reason="system",
        effect=Effect.TROUBLE,
        source="RFC 5321 §4.2.3, RFC 3463 §3.4; Postfix: 452 4.3.1 Insufficient system storage",
    ),
    Row(
        stages=_LATE,
        codes=(4,),
        enhanced=("3.",),
        texts=(
            "insufficient system storage",
            "temporary lookup failure",
            "temporary local problem",
            "local error in processing",
        ),
        fate=Fate.DEFERRED,
        reason="system",
        effect=Effect.TROUBLE,
        source="RFC 3463 §3.4; Postfix: 451 4.3.0 Temporary lookup failure (a table that cannot "
        "be read puts off everybody); Exim: 451 Temporary local problem; Exchange: 452 4.3.1",
    ),
    Row(
        stages=_BODY,
        codes=(450, 451, 452, 453, 454, 455, 456, 457, 458, 459),
        enhanced=(NO_CODE,),
        fate=Fate.DEFERRED,
        reason="system",
        effect=Effect.TROUBLE,
        source="RFC 5321 §4.2.3: 451 error in processing, 452 insufficient storage; after a body",
    ),
    Row(
        codes=(4,),
        fate=Fate.DEFERRED,
        reason="temporary",
        source="RFC 5321 §4.2.1, §4.5.4.1",
    ),
    Row(
        codes=(0, 1, 3, 6, 7, 8, 9),
        fate=Fate.DEFERRED,
        reason="confused",
        source="RFC 5321 §4.3.2 knows no such answer here; it says nothing of the mail",
    ),
    # ------------------------------------------------------------ 5xx before the session stands
    Row(
        stages=("connect", "greeting", "ehlo", "starttls", "session"),
        codes=(5,),
        fate=Fate.BLOCKED,
        reason="blocked",
        effect=Effect.UNCLEAR,
        source="RFC 5321 §3.1 (554), RFC 7504 (521): no mail from us; nothing of a user",
    ),
    # ------------------------------------------------------------ 5xx at MAIL
    Row(
        stages=("mail",),
        codes=(5,),
        enhanced=("1.7", "1.8", "7.27"),
        fate=Fate.HELD,
        reason="sender",
        source="RFC 3463 §3.2, RFC 7505 §4.2 (5.7.27: the sender's domain has a null MX)",
    ),
    Row(
        stages=("mail",),
        codes=(5,),
        enhanced=("2.3", "3.4"),
        fate=Fate.HELD,
        reason="too-large",
        source="RFC 1870 §6.1, RFC 3463 §3.3, §3.4",
    ),
    Row(
        stages=("mail",),
        codes=(5,),
        enhanced=("6.",),
        fate=Fate.HELD,
        reason="content",
        source="RFC 3463 §3.7; RFC 6531 §3.5 (5.6.7: SMTPUTF8 needed)",
    ),
    Row(
        stages=("mail",),
        codes=(501, 553),
        enhanced=("1.", "5.", NO_CODE),
        fate=Fate.HELD,
        reason="sender",
        source="RFC 5321 §4.3.2: 553 mailbox name not allowed, 501 syntax; of the reverse-path",
    ),
    Row(
        stages=("mail",),
        codes=(552,),
        enhanced=("1.", "5.", NO_CODE),
        fate=Fate.HELD,
        reason="too-large",
        source="RFC 1870 §6.1; RFC 5321 §4.3.2",
    ),
    Row(
        stages=("mail",),
        codes=(555,),
        enhanced=("1.", "5.", NO_CODE),
        fate=Fate.HELD,
        reason="syntax",
        source="RFC 5321 §4.1.1.11: parameters of MAIL not recognised",
    ),
    Row(
        stages=("mail",),
        codes=(5,),
        fate=Fate.BLOCKED,
        reason="blocked",
        effect=Effect.UNCLEAR,
        source="the peer refuses *us*, or this sender; Postfix's verify(8) and every other MTA "
        "take it for the recipient's fault",
    ),
    # ------------------------------------------------------------ 5xx about a recipient
    Row(
        stages=("rcpt",),
        codes=(5,),
        enhanced=("1.6", "7.17"),
        texts=("user has moved", "no longer at this address"),
        fate=Fate.HELD,
        reason="moved",
        source="RFC 3463 §3.2 (5.1.6), RFC 7293 (5.7.17: the mailbox has another owner)",
    ),
    Row(
        stages=("rcpt",),
        codes=(5,),
        enhanced=("1.10",),
        fate=Fate.HELD,
        reason="unknown",
        source="RFC 7505 §4.1 (null MX); Exchange: 550 5.1.10 RecipientNotFound",
    ),
    Row(
        stages=("rcpt",),
        codes=(5,),
        enhanced=("1.0", "1.1", "1.2", "1.3", "1.4", "4.1"),
        texts=(
            "user unknown",
            "unknown user",
            "unknown recipient",
            "unknown mailbox",
            "no such user",
            "no such recipient",
            "no such mailbox",
            "no such person",
            "no mailbox here",
            "user not found",
            "recipient not found",
            "mailbox not found",
            "unrouteable address",
            "does not exist",
            "doesn't exist",
            "invalid recipient",
            "invalid mailbox",
            "not a valid",
            "address unknown",
            "mailbox unavailable",
        ),
        fate=Fate.HELD,
        reason="unknown",
        source="RFC 3463 §3.2; Postfix and sendmail: 550 5.1.1 User unknown; Exim: 550 Unrouteable "
        "address; qmail and vpopmail: no mailbox here by that name (#5.1.1); Exchange Online: 550 "
        "5.4.1 Recipient address rejected: Access denied (directory based edge blocking)",
    ),
    Row(
        stages=_LATE,
        codes=(5,),
        enhanced=("2.1", "2.0"),
        texts=("account disabled", "account is disabled", "mailbox disabled", "account inactive"),
        fate=Fate.HELD,
        reason="disabled",
        source="RFC 3463 §3.3 (5.2.1)",
    ),
    Row(
        stages=_LATE,
        codes=(5,),
        enhanced=("2.2",),
        texts=("over quota", "overquota", "quota exceeded", "mailbox full", "mailbox is full"),
        fate=Fate.HELD,
        reason="over-quota",
        source="RFC 3463 §3.3 (5.2.2); RFC 5321 §4.2.3 (552 exceeded storage allocation)",
    ),
    Row(
        stages=_LATE,
        codes=(5,),
        enhanced=("2.3", "3.4"),
        texts=("message too large", "message too big", "message size exceeds", "size limit"),
        fate=Fate.HELD,
        reason="too-large",
        source="RFC 1870 §6.2, §6.3; RFC 3463 §3.3, §3.4",
    ),
    Row(
        stages=_LATE,
        codes=(5,),
        enhanced=("4.6", "4.14"),
        texts=("too many hops", "hop count exceeded", "loops back", "mail loop", "routing loop"),
        beside=True,
        fate=Fate.HELD,
        reason="loop",
        source="RFC 5321 §6.3, RFC 3463 §3.5 (5.4.6); Postfix: 554 5.4.0 too many hops; Exchange: "
        "554 5.4.14 hop count exceeded",
    ),
    Row(
        stages=("rcpt",),
        codes=(5,),
        texts=(
            "relay access denied",
            "relaying denied",
            "relay not permitted",
            "relaying not allowed",
            "unable to relay",
            "not permitted to relay",
            "allowed rcpthosts",
            "we do not relay",
        ),
        beside=True,
        fate=Fate.HELD,
        reason="no-relay",
        source="the primary does not know its own domain: Postfix: 554 5.7.1 Relay access denied; "
        "sendmail: 550 5.7.1 Relaying denied; Exim: 550 relay not permitted; qmail: not in my list "
        "of allowed rcpthosts (#5.7.1); Exchange: 550 5.7.54 Unable to relay",
    ),
    # ------------------------------------------------------------ 5xx about the content
    Row(
        stages=_LATE,
        codes=(5,),
        enhanced=("7.20", "7.21", "7.22", "7.23", "7.24", "7.25", "7.26", "7.29"),
        texts=("spf", "dkim", "dmarc"),
        fate=Fate.HELD,
        reason="authentication",
        source="RFC 7372 (5.7.20 to 5.7.26), RFC 8617 (5.7.29); the primary tests us instead of "
        "the client: it should trust this backup",
    ),
    Row(
        stages=_LATE,
        codes=(5,),
        enhanced=("6.",),
        fate=Fate.HELD,
        reason="content",
        source="RFC 3463 §3.7, RFC 6531 §3.5",
    ),
    Row(
        stages=_BODY,
        codes=(5,),
        texts=("no valid recipients", "no recipients"),
        beside=True,
        fate=Fate.HELD,
        reason="refused",
        source="RFC 5321 §3.3 (554 to DATA); the replies to RCPT tell why, where they came",
    ),
    Row(
        stages=_BODY,
        codes=(5,),
        enhanced=("7.", "0.0", NO_CODE),
        fate=Fate.HELD,
        reason="content",
        source="RFC 5321 §4.2.3 (554 after the final dot), RFC 3463 §3.8: Rspamd, SpamAssassin, "
        "amavis: 5.7.0 and 5.7.1",
    ),
    Row(
        stages=_LATE,
        codes=(5,),
        enhanced=("7.",),
        fate=Fate.HELD,
        reason="policy",
        source="RFC 3463 §3.8",
    ),
    Row(
        stages=("local",),
        codes=(5,),
        fate=Fate.HELD,
        reason="unfit",
        source="our own client: the peer offers no SMTPUTF8 or takes no message that large "
        "(RFC 6531 §3.1, RFC 1870 §6)",
    ),
    Row(
        stages=("damaged",),
        codes=(5,),
        fate=Fate.HELD,
        reason="damaged",
        source="our own stored copy does not match its checksum",
    ),
    Row(
        codes=(5,),
        fate=Fate.HELD,
        reason="refused",
        source="RFC 5321 §4.2.1",
    ),
)

"""What is known about a message apart from its bytes (RFC 5321 §2.3.1, RFC 3461).

These are msgspec Structs and not dataclasses: they are made for every message
on the hot path, and the spool encodes them.
"""

from __future__ import annotations

import msgspec


class Recipient(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One forward-path and what DSN (RFC 3461) asked for it.

    address: as the client spelled it, without angle brackets or source route;
        a bare "postmaster" has been completed with the domain it stands for.
    domain: the backed-up domain, A-labels, lower case; the key of its queue.
    notify, orcpt: values of NOTIFY= and ORCPT= as given; "" when absent.
    hold: why it is stored on hold, "" for the queue.
    """

    address: str
    domain: str
    notify: str = ""
    orcpt: str = ""
    hold: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The SMTP envelope.

    sender: reverse-path without angle brackets; "" is the null reverse-path.
    body: value of BODY= ("", "7BIT", "8BITMIME"); smtputf8: SMTPUTF8 was asked for.
    ret, envid: DSN parameters as given; "" when absent.
    """

    sender: str
    recipients: tuple[Recipient, ...]
    body: str = ""
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""


class Client(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who handed us the message.

    address: IP in text form (no brackets, no "IPv6:"); name: verified reverse
    name or "unknown"; helo: argument of HELO/EHLO; protocol: "SMTP", "ESMTP",
    "ESMTPS", "UTF8SMTP", "UTF8SMTPS" (RFC 3848, RFC 6531 §4.3); tls: e.g.
    "TLSv1.3 TLS_AES_256_GCM_SHA384" or "".
    """

    address: str
    port: int
    name: str = "unknown"
    helo: str = ""
    protocol: str = "SMTP"
    tls: str = ""

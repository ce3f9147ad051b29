"""The mail of the rehearsal: made, sent as any client would, and compared with what arrived."""

from __future__ import annotations

import base64
import random
import re
import smtplib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

DOMAIN: Final = "example.com"
MAILBOXES: Final = ("alice", "bob")
NOBODY: Final = f"nobody@{DOMAIN}"
SENDER: Final = "friend@example.org"
TIMEOUT_SECONDS: Final = 15

_RECIPIENTS: Final = (f"alice@{DOMAIN}", f"Bob@{DOMAIN}", f"alice+travel@{DOMAIN}")
_NUMBER = re.compile(rb"^Message-ID: <(\d+)\.rehearsal@example\.org>\r$", re.MULTILINE)
# What a server may put on top (RFC 5321 §4.4), and nothing else.
_TRACE = re.compile(rb"(?:(?:Received|Return-Path):[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)+")


def get_recipient(number: int) -> str:
    """To whom a message goes."""
    return _RECIPIENTS[number % len(_RECIPIENTS)]


def make_message(number: int) -> bytes:
    """Make one message; the same number gives the same octets.

    Bodies are of the kinds that careless servers damage.
    """
    head = (
        f"From: A friend <{SENDER}>\r\nTo: <{get_recipient(number)}>\r\n"
        f"Subject: rehearsal, message {number}\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
        f"Message-ID: <{number}.rehearsal@example.org>\r\n"
    )
    kind = number % 4
    if kind == 0:
        body = "\r\n.\r\n..\r\n.dots begin lines\r\nFrom a line that mailboxes quote\r\n\r\n\r\n"
    elif kind == 1:
        head += "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        head += "Content-Transfer-Encoding: 8bit\r\n"
        body = "\r\n" + "Zażółć gęślą jaźń. Grüße, Zoë ✉\r\n" * 20
    elif kind == 2:
        body = "\r\n" + "long " * 199 + "\r\nblanks at the end   \t \r\n\x0c\x07\r\n"
    else:
        head += "MIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\n"
        head += "Content-Transfer-Encoding: base64\r\n"
        noise = random.Random(number).randbytes(48 << 10)
        body = "\r\n" + base64.encodebytes(noise).decode().replace("\n", "\r\n")
    return (head + body).encode()


def send_messages(port: int, numbers: Iterable[int]) -> None:
    """Hand messages over on one connection. Raises smtplib.SMTPException, OSError."""
    with smtplib.SMTP(
        "127.0.0.1", port, local_hostname="client.example.org", timeout=TIMEOUT_SECONDS
    ) as client:
        for number in numbers:
            client.sendmail(
                SENDER, get_recipient(number), make_message(number), mail_options=["BODY=8BITMIME"]
            )


def ask_for(port: int, recipient: str) -> str:
    """The reply to RCPT for one recipient, as "550 5.1.1 text"."""
    with smtplib.SMTP(
        "127.0.0.1", port, local_hostname="client.example.org", timeout=TIMEOUT_SECONDS
    ) as client:
        client.ehlo()
        client.mail(SENDER)
        code, text = client.rcpt(recipient)
    return f"{code} {text.decode('utf-8', 'replace')}".replace("\n", " ")


def count_arrived(directory: Path) -> int:
    """How many messages the primary has stored."""
    return sum(1 for _ in directory.glob("*.eml"))


def find_faults(directory: Path, count: int) -> list[str]:
    """Compare what the primary stored with messages 0..count-1; one line for each fault."""
    faults = []
    seen: set[int] = set()
    for path in sorted(directory.glob("*.eml")):
        envelope, _, stored = path.read_bytes().partition(b"\n")
        match = _NUMBER.search(stored)
        number = int(match[1]) if match else -1
        if not 0 <= number < count:
            faults.append(f"{path.name}: nobody sent this")
            continue
        if number in seen:
            faults.append(f"message {number} arrived twice")
        seen.add(number)
        if envelope.decode() != f"{SENDER} {get_recipient(number)}":
            faults.append(f"message {number} came with the envelope {envelope!r}")
        trace = _TRACE.match(stored)
        if trace is None or stored[trace.end() :] != make_message(number):
            faults.append(f"message {number} is not what was sent")
    faults += [f"message {number} did not arrive" for number in range(count) if number not in seen]
    return faults

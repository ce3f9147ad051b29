"""Keys of posthouse.toml about the door: [smtp]."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Final

from posthouse.config_reading import NONE, make_key
from posthouse.config_values import (
    Endpoint,
    read_choice,
    read_count,
    read_distinct,
    read_duration,
    read_endpoint,
    read_flag,
    read_path,
    read_size,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SmtpConfig:
    """The door: [smtp]."""

    listen: tuple[Endpoint, ...]
    certificate: Path | None
    private_key: Path | None
    max_message_size: int
    max_recipients: int
    max_connections: int
    max_connections_per_client: int
    max_errors: int
    max_command_length: int
    idle_timeout: timedelta
    session_timeout: timedelta
    reverse_dns: bool
    bare_newlines: str
    disclose_551: bool


SMTP_KEYS: Final = (
    make_key(
        "listen",
        read_distinct(read_endpoint(), empty=False),
        ["0.0.0.0:25", "[::]:25"],
        "IP addresses with ports. Sockets handed over by systemd take their place. "
        "Port 0 lets the system choose.",
    ),
    make_key(
        "certificate",
        read_path,
        NONE,
        "PEM file with the certificate and its chain. With it STARTTLS is offered; "
        "read again on SIGHUP.",
    ),
    make_key(
        "private_key", read_path, NONE, "PEM file with its key; `user` must be able to read it."
    ),
    make_key(
        "max_message_size",
        read_size("64KiB", "4GiB"),
        "50MB",
        "Announced as SIZE; more gets 552 5.3.4. RFC 5321 §4.5.3.1.7 asks for 64 KiB at least, "
        "Postfix takes 10 MB, large mailbox providers 25 to 50 MB.",
    ),
    make_key(
        "max_recipients",
        read_count(100, 50_000),
        100,
        "Per message; more get 452 4.5.3. RFC 5321 §4.5.3.1.8 asks for 100 or more; Postfix: 1000.",
    ),
    make_key(
        "max_connections",
        read_count(1, 1_000_000),
        5000,
        "At once, in the whole node, shared evenly by the workers; more get 421 4.7.0. An idle one "
        "costs about 20 KiB.",
    ),
    make_key(
        "max_connections_per_client",
        read_count(1, 1_000_000),
        100,
        "At once from one client network (IPv4 /24, IPv6 /64) in one worker; more get 421 4.7.0. "
        "Postfix: 50 from one address.",
    ),
    make_key(
        "max_errors",
        read_count(1, 1000),
        10,
        "Refused commands in a session before 421 4.7.0. Postfix: 20, 1 under stress.",
    ),
    make_key(
        "max_command_length",
        read_size("1000B", "64KiB"),
        "2048B",
        "Octets of one command line. RFC 5321 §4.5.3.1.4 asks for 512, extensions add up to 1,000; "
        "Postfix: 2048.",
    ),
    make_key(
        "idle_timeout",
        read_duration("1s", "1h"),
        "5m",
        "Without a command or data: 421 4.4.2. RFC 5321 §4.5.3.2.7 asks for 5 minutes.",
    ),
    make_key(
        "session_timeout",
        read_duration("1s", "1d"),
        "1h",
        "A whole session, however busy: 421 4.4.2. 50 MB take an hour at 14 kB/s.",
    ),
    make_key(
        "reverse_dns",
        read_flag,
        True,
        "Look up the client's name for `Received` and the log; forward-confirmed (RFC 8601).",
    ),
    make_key(
        "bare_newlines",
        read_choice("refuse", "normalize"),
        "refuse",
        "A CR or LF alone in a message: 550 5.6.11 (SMTP smuggling; Postfix 3.9 does so), or "
        "made CR LF, which breaks signatures. It is never passed on.",
    ),
    make_key(
        "disclose_551",
        read_flag,
        True,
        "Answer 551 5.7.1 for an address whose owner blocked it here, as RFC 5321 §3.4 has it; "
        "false: 550 5.7.1, which does not tell that it exists elsewhere.",
    ),
)

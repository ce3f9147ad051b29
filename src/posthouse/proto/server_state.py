"""What a server session knows, and the few acts that every part of it shares.

The automaton stands in parts: `smtp_server` (the owner's side and the lines),
`server_commands` and `server_envelope` (what a command does), `server_content`
(DATA and BDAT). They work on this one record, by functions that take it.

Hot path: a part that held another would cost a look-up at every command; hence
one record with slots, and `smtp_server.ServerSession` is this record itself, with
the owner's side added (the one inheritance here).
"""

from __future__ import annotations

import enum
from typing import Final

from posthouse.mail.address import Mailbox
from posthouse.mail.reply import Reply
from posthouse.proto import server_params
from posthouse.proto import server_replies as replies
from posthouse.proto.dotdata import ChunkDecoder, DotDecoder
from posthouse.proto.server_events import Closing, ServerLimits

# The reply of the owner was a 421 itself.
SAID: Final = "refused for now"


class Mode(enum.Enum):
    """What the next octets are, if anything."""

    COMMAND = enum.auto()
    DATA = enum.auto()
    CHUNK = enum.auto()
    SKIP_LINE = enum.auto()
    TLS = enum.auto()
    CLOSED = enum.auto()


COMMAND: Final = Mode.COMMAND  # read at every command: an attribute of an Enum costs more
_CACHED: Final = {
    id(reply): reply.encode() for reply in (replies.OK, replies.SENDER_OK, replies.RECIPIENT_OK)
}


class ServerState:
    """One session's state. What the owner may read of it: see `smtp_server.ServerSession`.

    buffer, pos: octets received, and how many of them have been looked at; out: replies
    that are due; awaiting: the type of the event that waits for the owner; pending_close:
    why the session ends when the output has been taken, "" while it does not.
    accepted, refused_rcpt, over_limit: recipients of this transaction, by their fate.
    """

    __slots__ = (
        "accepted", "awaiting", "buffer", "chunk_left", "chunks", "commands", "content_bytes",
        "decoder", "ended", "errors", "esmtp", "helo", "idle_commands", "in_transaction",
        "last_chunk", "last_command", "limits", "mode", "offers_starttls", "out", "over_limit",
        "params", "pending_close", "pos", "refusal", "refused_rcpt", "sender", "sliced", "tls",
        "verdict",
    )  # fmt: skip

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self.buffer = b""
        self.pos = 0
        self.out: list[bytes] = []
        self.mode = COMMAND
        self.awaiting: type | None = None
        self.offers_starttls = limits.offer_starttls
        self.pending_close = ""
        self.helo = ""
        self.esmtp = False
        self.tls = ""
        self.errors = 0
        self.commands = 0
        self.last_command = "CONNECT"
        self.idle_commands = 0
        self.decoder: DotDecoder | ChunkDecoder | None = None
        self.chunk_left = 0
        self.last_chunk = False
        self.sliced = False  # content is left of what the last turn decoded
        self.refusal: Reply | None = None  # for a BDAT whose octets are still coming
        self.forget()

    def forget(self) -> None:
        """Drop the transaction."""
        self.in_transaction = False
        self.sender: Mailbox | None = None
        self.params = server_params.MailParams()
        self.accepted = 0
        self.refused_rcpt = 0
        self.over_limit = 0
        self.decoder = None
        self.content_bytes = 0
        self.verdict: Reply | None = None  # what is wrong with the content
        self.ended = False  # ContentEnd is due
        self.chunks = False  # a BDAT sequence is open

    def say(self, reply: Reply) -> None:
        """Put a reply into the output; a refusal counts as an error of the client's."""
        cached = _CACHED.get(id(reply))
        self.out.append(reply.encode() if cached is None else cached)
        if reply.code >= 400:
            self.errors += 1

    def close(self, why: str) -> Closing:
        """End the session, with 421 unless the client has heard its last reply."""
        if why not in ("quit", SAID):
            self.out.append(f"421 4.7.0 {self.limits.hostname} Error: {why}\r\n".encode())
        self.mode = Mode.CLOSED
        return Closing(why)

    def count_idle(self) -> None:
        """Count a command that brings no message nearer; too many of them are errors."""
        self.idle_commands += 1
        if self.idle_commands > self.limits.max_idle_commands:
            self.errors += 1

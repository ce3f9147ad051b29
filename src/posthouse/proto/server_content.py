"""DATA and BDAT at the server: when content may come, and where it ends.

Content comes out in pieces as it is received; what is wrong with it is kept until
its end, for a client hears of it only there. Raises nothing on any input.

Spec: RFC 5321 §4.1.1.4, RFC 3030 §2, RFC 1870 §6.3; dots and line ends: `dotdata`.
"""

from __future__ import annotations

import re
from typing import Final

from posthouse.proto import server_params
from posthouse.proto import server_replies as replies
from posthouse.proto.dotdata import ChunkDecoder, DotDecoder
from posthouse.proto.server_events import Abort, Content, DataRequest, Event
from posthouse.proto.server_state import COMMAND, Mode, ServerState

_BDAT: Final = re.compile(rb"(\d{1,20})(?:[ ]+(LAST))?\s*\Z", re.IGNORECASE)
# Content octets decoded before the owner gets a word in: under two milliseconds even to normalise.
_CONTENT_SLICE: Final = 1 << 16


def on_data(session: ServerState, argument: bytes) -> Event | None:
    """DATA: ask whether the message may come."""
    if argument:
        session.say(replies.NO_ARGUMENT)
    elif not session.in_transaction:
        session.say(replies.NEED_MAIL if session.helo else replies.HELO_FIRST)
    elif session.chunks:
        session.say(replies.MIXED)
    elif not session.accepted:
        session.say(replies.NO_VALID if session.refused_rcpt else replies.NEED_RCPT)
    else:
        session.awaiting = DataRequest
        return DataRequest(chunked=False)
    return None


def on_bdat(session: ServerState, argument: bytes) -> Event | None:
    """BDAT: its octets come in any case; the first one asks whether the message may."""
    found = _BDAT.match(argument)
    if found is None:
        # Without a size nobody can tell commands from content: stop here.
        session.say(replies.BDAT_SYNTAX)
        session.pending_close = "BDAT without a readable size"
        return None
    session.chunk_left = int(found.group(1))
    session.last_chunk = found.group(2) is not None
    if session.chunk_left > 2 * session.limits.max_message_bytes:
        session.say(server_params.TOO_BIG)  # not worth swallowing
        session.pending_close = "chunk too large"
        return None
    session.mode = Mode.CHUNK
    if not session.chunk_left and not session.last_chunk:
        session.count_idle()
    if session.chunks:
        return None
    # The octets come in any case and are swallowed before a refusal (RFC 3030 §2).
    if not session.in_transaction:
        session.refusal = replies.NEED_MAIL if session.helo else replies.HELO_FIRST
    elif not session.accepted:
        session.refusal = replies.NO_VALID if session.refused_rcpt else replies.NEED_RCPT
    else:
        session.chunks = True
        session.awaiting = DataRequest
        return DataRequest(chunked=True)
    return None


def read_data(session: ServerState) -> Event | None:
    """Take what was received for content, up to the final dot."""
    data = _take_slice(session, _CONTENT_SLICE)
    decoder = session.decoder
    assert isinstance(decoder, DotDecoder)
    content, rest = decoder.feed(data)
    if rest is not None:
        if session.sliced:
            session.sliced = False
            session.pos -= len(rest)
        else:
            session.buffer, session.pos = rest, 0
        session.mode = COMMAND
        session.ended = True
    elif session.content_bytes > 2 * session.limits.max_message_bytes + (1 << 20):
        session.say(server_params.TOO_BIG)
        session.forget()
        session.mode = COMMAND
        session.pending_close = "message without end"
        return Abort()
    return _pass_content(session, content, decoder.bare)


def read_chunk(session: ServerState) -> Event | None:
    """Take what was received for content, up to the end of the chunk."""
    data = _take_slice(session, min(session.chunk_left, _CONTENT_SLICE))
    session.chunk_left -= len(data)
    done = not session.chunk_left
    if done:
        session.sliced = False
    event: Event | None = None
    decoder = session.decoder
    if isinstance(decoder, ChunkDecoder):
        content = decoder.feed(data)
        if done and session.last_chunk:
            content += decoder.finish()
        event = _pass_content(session, content, decoder.bare)
    if done:
        session.mode = COMMAND
        return _end_chunk(session) or event
    return event


def _end_chunk(session: ServerState) -> Event | None:
    refusal, session.refusal = session.refusal, None
    if refusal is not None:
        session.say(refusal)
    elif session.last_chunk:
        session.ended = True
    elif session.verdict is not None:  # RFC 3030 §2: a 5xx to a chunk ends the transaction
        session.say(session.verdict)
        session.forget()
        return Abort()
    else:
        session.out.append(b"250 2.0.0 Chunk received\r\n")
    return None


def _take_slice(session: ServerState, size: int) -> bytes:
    """At most `size` octets of what was received; `sliced` tells that there are more."""
    buffer, start = session.buffer, session.pos
    session.sliced = len(buffer) - start > size
    if session.sliced:
        session.pos = start + size
        return buffer[start : start + size]
    session.buffer, session.pos = b"", 0
    return buffer[start:] if start else buffer


def _pass_content(session: ServerState, content: bytes, bare: bool) -> Event | None:
    session.content_bytes += len(content)
    if session.verdict is not None or not content:
        return None
    if session.content_bytes > session.limits.max_message_bytes:
        session.verdict = server_params.TOO_BIG
        return None
    if bare and session.limits.bare_newlines != "normalize":
        session.verdict = replies.BARE_CONTENT
        return None
    return Content(content)

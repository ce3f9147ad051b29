"""Redirecting: what waits for one recipient goes to another address instead.

A copy of the message with the new recipient is made durable first, then the
old rows are removed: a crash in between leaves both, never none. A copy rather
than a changed row, because the relay sends only to addresses that the record
beside the body vouches for. The octets stay as they are, our trace fields of
before included; `ORCPT` keeps the address that was meant (RFC 3461 §4.2).

The address must lie in a domain that this node backs up: a redirect is no way
to make a relay of it. Whoever asks has checked that (`interfaces.control`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from posthouse import observe
from posthouse.errors import BodyDamaged
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Envelope, Recipient
from posthouse.mail.queueid import format_queue_id, time_us_of
from posthouse.ports_spool import OperatorAction, QueuedMessage, Selection, Spool

PIECE_BYTES: Final = 256 * 1024
_PAGE: Final = 100


class Redirected(msgspec.Struct, kw_only=True):
    """recipients: moved. failed: rows left on hold, because their body is damaged."""

    recipients: int = 0
    failed: int = 0


async def redirect(
    spool: Spool,
    selection: Selection,
    mailbox: Mailbox,
    *,
    now_us: int,
    moved: Callable[[], None],
) -> Redirected:
    """Send what `selection` means in this shard to `mailbox`, due at once.

    moved: called when rows were put on hold that the relay may have read already. One
    that is being sent at this moment may reach both addresses. Copies are not looked at
    again. Raises StorageError; what was done until then stands, the rest is on hold.
    """
    done = Redirected()
    border = msgspec.structs.replace(selection, older_than_us=_border_us(spool, selection))
    after: int | None = None
    while True:
        page = await spool.list_messages(border, after=after, limit=_PAGE)
        for message in page:  # nothing else may send them meanwhile
            for one in _rows_of(message):
                await spool.act(one, OperatorAction.HOLD, now_us=now_us)
        moved()
        for message in page:
            await _redirect_one(spool, message, mailbox, now_us, done)
        if len(page) < _PAGE:
            return done
        after = page[-1].queue_id


def _rows_of(message: QueuedMessage) -> list[Selection]:
    addresses = dict.fromkeys(row.address for row in message.recipients)
    return [Selection(queue_ids=(message.queue_id,), recipient=one) for one in addresses]


def _border_us(spool: Spool, selection: Selection) -> int:
    """Ids ascend whatever the clock does, so the copies lie at or behind a fresh one."""
    fresh = spool.begin()
    fresh.discard()
    border_us = time_us_of(fresh.queue_id)
    wanted_us = selection.older_than_us
    return border_us if wanted_us is None else min(border_us, wanted_us)


async def _redirect_one(
    spool: Spool, message: QueuedMessage, mailbox: Mailbox, now_us: int, done: Redirected
) -> None:
    rows = message.recipients
    old = format_queue_id(message.queue_id)
    try:
        new = await _copy(spool, message, mailbox)
    except (BodyDamaged, KeyError) as error:
        done.failed += len(rows)
        observe.trouble("control", f"{old} cannot be redirected", error)
        return
    for one in _rows_of(message):
        done.recipients += await spool.act(one, OperatorAction.DELETE, now_us=now_us)
    whom = ", ".join(row.address for row in rows[:5]) + (", …" if len(rows) > 5 else "")
    observe.note("control", f"{old}: redirected from {whom} to {mailbox.spelled} as {new}")


async def _copy(spool: Spool, message: QueuedMessage, mailbox: Mailbox) -> str:
    """Store the message once more; the new queue id. Raises BodyDamaged, KeyError, StorageError."""
    first = message.recipients[0]
    body = await spool.open_body(message.queue_id)
    incoming = spool.begin()
    try:
        while piece := await body.read(PIECE_BYTES):
            if not incoming.write(piece):
                await incoming.drain()
    except BaseException:
        incoming.discard()
        raise
    finally:
        body.close()
    envelope = Envelope(
        sender=message.envelope_sender,
        recipients=(
            Recipient(
                address=mailbox.spelled,
                domain=mailbox.domain,
                notify=first.notify,
                orcpt=first.orcpt or f"rfc822;{_xtext(first.address)}",
            ),
        ),
        body=message.body_type,
        smtputf8=message.smtputf8,
        ret=message.ret,
        envid=message.envid,
    )
    await spool.commit(incoming, envelope=envelope, client=message.client)
    return format_queue_id(incoming.queue_id)


def _xtext(text: str) -> str:
    """RFC 3461 §4: what is not printable US-ASCII, "+" and "=" become "+XX"."""
    return "".join(
        chr(octet) if 33 <= octet <= 126 and octet not in b"+=" else f"+{octet:02X}"
        for octet in text.encode()
    )

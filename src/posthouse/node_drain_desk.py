"""How the operator's command reaches the states of next hops, with and without a running node.

With one it asks the control process. Without one it reads what is kept, and
writes there what the next start shall find; a node that starts meanwhile waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from posthouse import node_settings
from posthouse.config_schema import Config
from posthouse.domain.drain import Event, Health, State, after_restart, move
from posthouse.errors import PosthouseError
from posthouse.node_drain import drain_socket, nexthop_book
from posthouse.node_process import clock_us
from posthouse.node_user import NodeLock, become, find_owner, is_locked
from posthouse.ports_drain import (
    NextHopRecord,
    NextHopView,
    Pause,
    Resume,
    Show,
    Shown,
    decode_reply,
    encode_line,
)
from posthouse.services.relay_settings import group_routes
from posthouse.transports.drain_line import connect_unix_socket

Wish = Show | Pause | Resume

# A control process that was just replaced is back within this time.
CONNECT_SECONDS: Final = 10.0
REPLY_SECONDS: Final = 30.0


class BoardUnreachable(PosthouseError):
    """The control process does not answer."""


def ask_board(config: Config, wish: Wish) -> tuple[Sequence[NextHopView], bool]:
    """All next hops after `wish` is done, and whether a running node answered.

    Raises BoardUnreachable, StorageError, PermissionError.
    """
    if not config.data_dir.is_dir():
        raise BoardUnreachable(f"{config.data_dir} does not exist: no node has run here yet")
    os.listdir(config.data_dir)  # a plain PermissionError now instead of a riddle later
    shown = _ask_node(config, wish)
    if shown is None:
        return _do_without_node(config, wish), False
    if not shown.durable:
        raise BoardUnreachable("it is in force, but could not be written down: see the node's log")
    return shown.next_hops, True


def _ask_node(config: Config, wish: Wish) -> Shown | None:
    """None when no node runs."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while is_locked(config.data_dir):
        try:
            connection = connect_unix_socket(drain_socket(config.data_dir))
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise BoardUnreachable(
                    "the control process does not answer; see the node's log"
                ) from None
            time.sleep(0.05)
            continue
        with connection, connection.makefile("rb") as reader:
            connection.settimeout(REPLY_SECONDS)
            connection.sendall(encode_line(wish))
            line = reader.readline()
        reply = decode_reply(line) if line else None
        if not isinstance(reply, Shown):
            raise BoardUnreachable("the control process gave no answer; see the node's log")
        return reply
    return None


def _do_without_node(config: Config, wish: Wish) -> Sequence[NextHopView]:
    book = nexthop_book(config.data_dir)
    if not isinstance(wish, Show):
        if os.geteuid() == 0:  # what root makes here the node could not write
            become(find_owner(config.data_dir))
        lock = NodeLock(config.data_dir, wait_seconds=CONNECT_SECONDS, what="a posthouse command")
        try:
            known = {record.next_hop: record.health for record in book.load()}
            for key in wish.next_hops:
                health = _apply(known.get(key, _unknown()), wish)
                if health is None:
                    known.pop(key, None)
                else:
                    known[key] = health
            book.save([NextHopRecord(next_hop=k, health=h) for k, h in sorted(known.items())])
        finally:
            lock.release()
    known = {record.next_hop: record.health for record in book.load()}
    groups = group_routes(node_settings.make_routes(config))
    return [
        _view(key, domains, known.get(key, _unknown()))
        for key, (_, domains) in sorted(groups.items())
    ]


def _unknown() -> Health:
    return Health(state=State.SUSPECT, why="no node is running")


def _apply(health: Health, wish: Pause | Resume) -> Health | None:
    """The record after a wish; None: none is needed."""
    now_us = clock_us()
    if isinstance(wish, Pause):
        return move(health, Event.PAUSE, now_us=now_us, why=wish.why)
    after = move(health, Event.RESUME, now_us=now_us, why="resumed by the operator")
    if not wish.guarded:
        return msgspec.structs.replace(after, guarded=False)
    return None if after_restart(after.state) is State.SUSPECT else after


def _view(key: str, domains: tuple[str, ...], health: Health) -> NextHopView:
    return NextHopView(
        next_hop=key,
        domains=domains,
        state=health.state,
        since_us=health.since_us,
        why=health.why,
        guarded=health.guarded,
    )

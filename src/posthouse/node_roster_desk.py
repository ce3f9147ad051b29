"""How the operator's commands reach the subscriber, with and without a running node.

With one they ask the control process. Without one the command does it itself,
as the user who owns the data, and a node that starts meanwhile waits.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

import msgspec

from posthouse.config_schema import Config
from posthouse.errors import PosthouseError
from posthouse.interfaces.roster_door import RosterOrder, RosterSaid, carry_out
from posthouse.node_process import clock_us
from posthouse.node_rosters import roster_socket
from posthouse.node_subscriber import RosterDuty
from posthouse.node_user import NodeLock, become, find_owner, is_locked
from posthouse.services.standing_alerts import StandingAlerts
from posthouse.transports.drain_line import connect_unix_socket

# A control process that was just replaced is back within this time.
CONNECT_SECONDS: Final = 10.0
# A slow primary, a thousand domains: as long as the operator has patience.
REPLY_SECONDS: Final = 3600.0


class SubscriberUnreachable(PosthouseError):
    """The control process does not answer."""


def order_rosters(config: Config, order: RosterOrder) -> RosterSaid:
    """Have it done. Raises SubscriberUnreachable, StorageError, PermissionError."""
    if not config.data_dir.is_dir():
        raise SubscriberUnreachable(f"{config.data_dir} does not exist: no node has run here yet")
    os.listdir(config.data_dir)  # a plain PermissionError now instead of a riddle later
    said = _ask_node(config, order)
    return said if said is not None else _do_without_node(config, order)


def _ask_node(config: Config, order: RosterOrder) -> RosterSaid | None:
    """None when no node runs."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while is_locked(config.data_dir):
        try:
            connection = connect_unix_socket(roster_socket(config.data_dir))
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise SubscriberUnreachable(
                    "the control process does not answer; see the node's log"
                ) from None
            time.sleep(0.05)
            continue
        with connection, connection.makefile("rb") as reader:
            connection.settimeout(REPLY_SECONDS)
            connection.sendall(msgspec.json.encode(order) + b"\n")
            line = reader.readline()
        if not line:
            raise SubscriberUnreachable("the control process gave no answer; see the node's log")
        return msgspec.json.decode(line, type=RosterSaid)
    return None


def _do_without_node(config: Config, order: RosterOrder) -> RosterSaid:
    if os.geteuid() == 0:  # what root makes here the node could not write
        become(find_owner(config.data_dir))
    lock = NodeLock(config.data_dir, wait_seconds=CONNECT_SECONDS, what="a posthouse command")
    try:
        return asyncio.run(_carry_out(config, order))
    finally:
        lock.release()


async def _carry_out(config: Config, order: RosterOrder) -> RosterSaid:
    duty = RosterDuty(config, StandingAlerts(clock_us))
    duty.prepare(config)
    try:
        return await carry_out(duty.subscriber, order)
    finally:
        await duty.close()

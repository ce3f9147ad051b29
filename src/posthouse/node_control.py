"""The control process: recipient lists, rosters, agreements, states of next hops, alerts.

If it dies, mail still flows.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from posthouse import node_settings
from posthouse.config_schema import Config
from posthouse.node_agreements_duty import AgreementsDuty
from posthouse.node_drain import NextHopDuty
from posthouse.node_odmr import OdmrDuty
from posthouse.node_process import Process, clock_us, elapsed_us, read_again, run_in_loop
from posthouse.node_subscriber import RosterDuty
from posthouse.node_watch import Watch
from posthouse.services.recipients import Publisher
from posthouse.storage.recipient_lists import RecipientIndexes
from posthouse.supervisor import Heartbeat


def lists_directory(data_dir: Path) -> Path:
    """Where the lists in force are kept."""
    return data_dir / "recipients"


def run_control(
    config: Config,
    heartbeat: Heartbeat,
    *,
    workers: int,
    listening: Sequence[tuple[str, int]],
    odmr: Sequence[socket.socket],
    https: Sequence[socket.socket],
) -> int:
    """The duty of the control process until SIGTERM.

    listening: addresses of the SMTP door; odmr, https: the sockets of those for ATRN and for
    paired primaries.
    """
    return run_in_loop(_control(config, heartbeat, workers, listening, odmr, https))


async def _control(
    config: Config,
    heartbeat: Heartbeat,
    workers: int,
    listening: Sequence[tuple[str, int]],
    odmr: Sequence[socket.socket],
    https: Sequence[socket.socket],
) -> int:
    indexes = RecipientIndexes(lists_directory(config.data_dir))
    indexes.prepare()
    publisher = Publisher(indexes, node_settings.make_sources(config), now_us=clock_us)

    async def reload(new: Config) -> None:
        next_hops.reload(new)
        fetching.reload(new)
        await watch.reload(new)
        publisher.set_sources(node_settings.make_sources(new))
        await publisher.refresh()
        rosters.reload(new)
        await agreements.reload(new)

    process = Process(config, heartbeat, reload, read=read_again)
    next_hops = NextHopDuty(config, workers=workers, listening=listening)
    fetching = OdmrDuty(config, workers=workers, states=next_hops.board, ways=next_hops.ways)
    await next_hops.open(config)
    await fetching.open(odmr)
    watch = Watch(
        config,
        lists=publisher.describe,
        states=next_hops.board,
        listening=listening,
        clock_us=clock_us,
        elapsed_us=elapsed_us,
    )
    rosters = RosterDuty(config, watch.alerts, heard_date=watch.clock.hear)
    rosters.prepare(config)
    await publisher.refresh()
    await rosters.open(config, process)
    agreements = AgreementsDuty(
        config,
        workers=workers,
        alerts=watch.alerts,
        states=next_hops.board,
        https=https,
        heard_date=watch.clock.hear,
    )
    await agreements.open(process)
    process.keep(publisher.run(), "watching recipient files")
    process.keep(watch.run(), "watching the node")
    process.serve()
    await process.stopping.wait()
    await agreements.close(config.shutdown_grace.total_seconds())
    await process.end_tasks()
    await fetching.close()
    await rosters.close()
    await next_hops.close()
    return 70 if process.failed else 0

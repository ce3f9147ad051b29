"""The books of agreements in the control process, when they cannot be opened."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fakes.agreement_world import Alerts
from fakes.open_door import until
from fakes.pairs import write_pairs
from posthouse import node_forwarder
from posthouse.config import load
from posthouse.errors import StorageBroken
from posthouse.node_agreements import agreements_directory
from posthouse.node_forwarder import CLOSED, ForwarderDuty

OWNER, US = "example.com", "mx2.example.net"


async def test_books_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person is told, it is tried again, and the alert is over when the books are open."""
    monkeypatch.setattr(node_forwarder, "AGAIN_SECONDS", 0.01)
    write_pairs(tmp_path, OWNER, US)
    file = tmp_path / "posthouse.toml"
    file.write_text(
        f'hostname = "{US}"\ndata_dir = "data"\n[[primary]]\npairing = "{OWNER}.json"\n'
        f'own = "{US}.json"\n[[domain]]\nname = "{OWNER}"\nrecipients = {{ primary = "{OWNER}" }}\n'
    )
    config = load(file, check_files=False)
    config.data_dir.mkdir()
    in_the_way = agreements_directory(config.data_dir) / "granter.db"  # the second book
    in_the_way.mkdir(parents=True)
    alerts = Alerts()
    duty = ForwarderDuty(config, workers=1, alerts=alerts, find_roster=lambda _domain: None)
    running = asyncio.create_task(duty.run())
    try:
        await until(lambda: (CLOSED, "books") in alerts.standing)
        with pytest.raises(StorageBroken):
            duty.get_granter()
        in_the_way.rmdir()
        await until(lambda: duty._granter is not None)
        assert alerts.standing == {}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

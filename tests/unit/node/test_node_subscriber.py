"""Whom rosters are asked of, and whose keys they are checked with."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.pairs import write_pairs
from fakes.roster_alerts import StandingAlerts
from posthouse.config import load
from posthouse.node_subscriber import RosterDuty
from posthouse.services.roster_sources import PeerRosters, UrlRosters
from posthouse.services.subscriber import Subscription
from posthouse.storage.roster_local import LocalRoster

OWNER, FRONT, US = "example.com", "mx2.example.net", "mx3.example.org"


async def subscribe(folder: Path, recipients: str) -> Subscription | None:
    """What is asked for example.com, with the owner and a backup in front of us paired."""
    write_pairs(folder, OWNER, US)
    write_pairs(folder, FRONT, US, primary_url="https://mx2.example.net:8447/", domains=(OWNER,))
    tables = "".join(
        f'[[primary]]\npairing = "{party}.json"\nown = "{US}.json"\n' for party in (OWNER, FRONT)
    )
    file = folder / "posthouse.toml"
    file.write_text(
        f'hostname = "{US}"\ndata_dir = "data"\n{tables}[[domain]]\nname = "{OWNER}"\n'
        f"recipients = {recipients}\n"
    )
    duty = RosterDuty(load(file, check_files=False), StandingAlerts())
    try:
        subscriptions = duty._subscribe(load(file, check_files=False))
        return subscriptions[0] if subscriptions else None
    finally:
        await duty.close()


@pytest.mark.parametrize(
    ("recipients", "kind", "asked", "keys"),
    [
        (f'{{ primary = "{OWNER}" }}', PeerRosters, OWNER, OWNER),
        (f'{{ primary = "{FRONT}", pairing = "{OWNER}.json" }}', PeerRosters, FRONT, OWNER),
        ('"https://cdn.example/x"', UrlRosters, "https://cdn.example/x", OWNER),
        (f'{{ file = "x.roster", pairing = "{OWNER}.json" }}', LocalRoster, "x.roster", OWNER),
    ],
)
async def test_who_is_asked_and_who_made_it(
    tmp_path: Path, recipients: str, kind: type, asked: str, keys: str
) -> None:
    """Usually the same; a backup in front of us may hand on what the owner made."""
    found = await subscribe(tmp_path, recipients)
    assert found is not None
    assert isinstance(found.source, kind)
    assert found.source.name.endswith(asked)
    assert found.keys.party == keys


async def test_nobody_is_asked_without_keys(tmp_path: Path) -> None:
    """A roster that nothing could be believed of is not fetched."""
    assert await subscribe(tmp_path, '{ primary = "stranger.example" }') is None

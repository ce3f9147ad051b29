"""The log of availability, brought up from the layout before."""

from __future__ import annotations

from pathlib import Path

import apsw

from posthouse.ports_alerts import Reason
from posthouse.storage import availability_store
from posthouse.storage.availability_store import HOUR_US, SqliteAvailability
from posthouse.tally import Tally

NEW = ", proxied INTEGER NOT NULL DEFAULT 0, proxied_bytes INTEGER NOT NULL DEFAULT 0"


def test_what_an_older_posthouse_wrote(tmp_path: Path) -> None:
    """Its counts and outages stay, the new counts begin at nothing, in every process that opens."""
    file = tmp_path / "availability.db"
    old = apsw.Connection(str(file))
    old.execute(availability_store._TABLES.replace(NEW, ""))
    old.execute("INSERT INTO tally VALUES ('example.com', 5, 0, 1, 2, 3, 4, 5, 6, 7)")
    old.execute("INSERT INTO total VALUES ('example.com', 0, 1, 2, 3, 4, 5, 6, 7)")
    old.execute("INSERT INTO route VALUES ('example.com', 'mx:example.com', 0, 0)")
    old.pragma("user_version", 1)
    old.close()
    first, second = SqliteAvailability.open(file), SqliteAvailability.open(file)
    now_us = 5 * HOUR_US
    first.begin_outage("mx:example.com", Reason.REFUSED, "refused", from_us=now_us)
    second.add(1, {"example.com": Tally(accepted=1, proxied=2, proxied_bytes=90)}, now_us=now_us)
    first.end_outage("mx:example.com", to_us=now_us + HOUR_US)
    history = first.read("example.com", from_us=0, to_us=10 * HOUR_US)
    first.close()
    second.close()
    assert history.tally == Tally(
        accepted=2,
        accepted_bytes=2,
        delivered=3,
        delivered_bytes=4,
        held=5,
        unknown=6,
        longest_us=7,
        proxied=2,
        proxied_bytes=90,
    )
    (outage,) = history.outages
    assert outage.meanwhile == Tally(accepted=1, proxied=2, proxied_bytes=90)

"""The owner's rosters, handed on by a backup to one behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.roster_disk import RosterDisk
from fakes.vectors import DELTA, DELTA_RESULT, DOMAIN, ROSTER, VECTORS
from posthouse.errors import StorageBroken
from posthouse.ports_publish import RosterReplyKind
from posthouse.storage.owner_rosters import OwnerRosters


@pytest.fixture
def disk(tmp_path: Path) -> RosterDisk:
    return RosterDisk(tmp_path / "rosters")


async def test_the_file_is_handed_on_unchanged(disk: RosterDisk) -> None:
    """Whole, whichever key is asked for, and the newest once there is a newer one."""
    rosters = OwnerRosters(disk.files)
    assert await rosters.find(DOMAIN, "k") is None
    disk.take_in(ROSTER)
    reply = await rosters.find(DOMAIN, "k", since=1)
    assert reply is not None
    assert reply.kind is RosterReplyKind.WHOLE
    assert Path(reply.path).read_bytes() == ROSTER
    assert (reply.size_bytes, reply.serial) == (len(ROSTER), VECTORS["roster"]["serial"])
    disk.take_in(DELTA)
    reply = await rosters.find(DOMAIN, "k")
    assert reply is not None
    assert Path(reply.path).read_bytes() == DELTA_RESULT


async def test_not_modified(disk: RosterDisk) -> None:
    """The serial in force need not be sent again."""
    disk.take_in(ROSTER)
    serial = VECTORS["roster"]["serial"]
    reply = await OwnerRosters(disk.files).find(DOMAIN, "k", if_none_match=f'"{serial}"')
    assert reply is not None
    assert (reply.kind, reply.etag) == (RosterReplyKind.NOT_MODIFIED, f'"{serial}"')


async def test_other_domains_and_damage(disk: RosterDisk) -> None:
    """What is not there is None; what cannot be read is our fault."""
    disk.take_in(ROSTER)
    rosters = OwnerRosters(disk.files)
    assert await rosters.find("example.org", "k") is None
    for path in disk.directory.glob("*.state"):
        path.write_bytes(b"rubbish")
    with pytest.raises(StorageBroken):
        await rosters.find(DOMAIN, "k")

"""The servers for Postfix follow the configuration, and a bad place costs only themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.granted import FakeGranted
from peers.processes import free_port
from posthouse import observe
from posthouse.config_primary_schema import PostfixConfig
from posthouse.config_values import Endpoint
from posthouse.node_postfix import PostfixHouse


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log"
    observe.configure(fmt="json", to=str(path))
    observe.gather_with(None)
    yield path
    observe.configure()


async def greeting(path: Path) -> bytes:
    """What the server at a socket says first."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    said = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return said


async def test_servers_stand_where_the_configuration_says(tmp_path: Path) -> None:
    """Moved, added and taken away by a reload; at the end no socket is left."""
    house = PostfixHouse(FakeGranted())
    one, two = tmp_path / "one", tmp_path / "two"
    port = free_port()
    await house.set_plan(PostfixConfig(auth_socket=one, policy_listen=None))
    assert await greeting(one) == b"VERSION\t1\t2\n"
    place = Endpoint(address="127.0.0.1", port=port)
    await house.set_plan(PostfixConfig(auth_socket=two, policy_listen=place))
    assert await greeting(two) == b"VERSION\t1\t2\n"
    assert not one.exists()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()
    await house.set_plan(PostfixConfig(auth_socket=None, policy_listen=None))
    assert not two.exists()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)
    await house.close()


async def test_a_place_that_cannot_be_had_is_told_once(tmp_path: Path, log: Path) -> None:
    """An alert; the other server stands all the same, and the first one as soon as it can."""
    house = PostfixHouse(FakeGranted())
    missing, policy = tmp_path / "later" / "auth", tmp_path / "policy"
    plan = PostfixConfig(auth_socket=missing, policy_listen=policy)
    for _ in range(2):
        await house.set_plan(plan)
    assert policy.is_socket()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum("cannot listen" in json.dumps(line) for line in lines) == 1
    missing.parent.mkdir()
    await house.set_plan(plan)
    assert await greeting(missing) == b"VERSION\t1\t2\n"
    await house.close()

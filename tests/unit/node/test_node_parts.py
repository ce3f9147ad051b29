from __future__ import annotations

import configparser
import ipaddress
import os
import pwd
import socket
from pathlib import Path

import pytest

from posthouse import node_settings, observe
from posthouse.config import load
from posthouse.config_schema import Config
from posthouse.config_values import Endpoint
from posthouse.errors import ConfigError, StorageBusy
from posthouse.node import find_fixed_changes
from posthouse.node_process import choose_log_place, configure_log
from posthouse.node_sockets import open_listeners, take_systemd_sockets
from posthouse.node_spools import find_shards, shards_of_worker
from posthouse.node_user import NodeLock, is_locked, prepare_data_dir

TEXT = """\
hostname = "mx2.example.net"
[smtp]
max_connections = 1001
max_message_size = "10MB"
[relay]
own_names = ["mx2.example.org"]
own_addresses = ["198.51.100.1"]
concurrency = 5
retry = ["90s", "1h"]
[[domain]]
name = "example.com"
next_hop = ["smtp://192.0.2.1:2525", "smtp://mail.example.com"]
keep_for = "2d"
[[domain]]
name = "example.org"
"""


def read(tmp_path: Path, text: str = TEXT) -> Config:
    file = tmp_path / "posthouse.toml"
    file.write_text(text)
    return load(file)


# --------------------------------------------------------------------------- settings


def test_settings_reach_every_part(tmp_path: Path) -> None:
    """What the operator wrote is what door, relay and sweeper are told; totals are shared out."""
    config = read(tmp_path)
    door = node_settings.make_door(config, 4)
    assert door.max_connections == 251
    assert door.limits.max_message_bytes == 10_000_000
    assert not door.limits.offer_starttls
    relay = node_settings.make_relay(config, 4, [("192.0.2.9", 25)])
    assert relay.own_names == {"mx2.example.net", "mx2.example.org"}
    assert relay.own_addresses == {"198.51.100.1", "192.0.2.9"}
    assert relay.concurrency == 2
    assert relay.retry_us == (90_000_000, 3_600_000_000)
    routes = node_settings.make_routes(config)
    assert [str(hop) for hop in routes["example.com"].hops] == [
        "smtp://192.0.2.1:2525",
        "smtp://mail.example.com:25",
    ]
    assert routes["example.org"].hops == ()
    keep_for = node_settings.make_keep_for(config)
    assert keep_for["example.com"] == 2 * 86_400_000_000
    assert list(node_settings.make_reception(config).domains) == ["example.com", "example.org"]


def test_a_wildcard_means_all_addresses_of_this_host(tmp_path: Path) -> None:
    """Behind a wildcard no address of this host is a next hop."""
    own = node_settings.make_relay(read(tmp_path), 1, [("0.0.0.0", 25)]).own_addresses
    assert {"127.0.0.0/8", "::1", *node_settings.find_host_addresses()} <= own


def test_addresses_come_from_the_kernel() -> None:
    """The loopback address is among them, and all are addresses."""
    found = node_settings.find_host_addresses()
    assert "127.0.0.1" in found
    assert all(ipaddress.ip_address(text) for text in found)


@pytest.mark.parametrize(("port", "ours"), [(25, True), (2525, False)])
def test_a_loopback_address_is_shared(tmp_path: Path, port: int, ours: bool) -> None:
    """On a loopback address only the mail port makes it ours."""
    own = node_settings.make_relay(read(tmp_path), 1, [("127.0.0.1", port)]).own_addresses
    assert ("127.0.0.1" in own) is ours


def test_changes_that_need_a_restart_are_found(tmp_path: Path) -> None:
    """Each key that a reload cannot take up is named; others are not."""
    old = read(tmp_path)
    new = read(tmp_path, "workers = 3\n" + TEXT.replace("[relay]", '[relay]\ntls = "none"'))
    assert find_fixed_changes(old, new) == ["workers", "relay.tls"]
    assert find_fixed_changes(old, read(tmp_path, TEXT.replace("1001", "1002"))) == []


# --------------------------------------------------------------------------- sockets


def test_every_worker_has_its_own_socket_on_the_same_port() -> None:
    """A port the system chose is shared by all workers; both families stay apart."""
    endpoints = [Endpoint(address="127.0.0.1", port=0), Endpoint(address="::1", port=0)]
    listeners = open_listeners(endpoints, 3)
    try:
        assert len(listeners.addresses()) == 2
        ports = {row[0].getsockname()[1] for row in listeners.by_worker}
        assert len(ports) == 1
        assert len({one.fileno() for row in listeners.by_worker for one in row}) == 6
        for row in listeners.by_worker:
            assert row[1].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
            assert not os.get_inheritable(row[0].fileno())
        with socket.create_connection(("127.0.0.1", ports.pop())):
            pass
        listeners.close_others(1)
        assert [row[0].fileno() >= 0 for row in listeners.by_worker] == [False, True, False]
    finally:
        listeners.close()


def test_addresses_that_cannot_be_bound_are_all_told() -> None:
    """Every bad address is named, and none stays bound."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        endpoints = [
            Endpoint(address="127.0.0.1", port=port),
            Endpoint(address="192.0.2.77", port=2525),
        ]
        with pytest.raises(ConfigError) as caught:
            open_listeners(endpoints, 2)
    assert len(caught.value.mistakes) == 2
    assert "stop the other server on this port" in caught.value.mistakes[0]


def test_sockets_meant_for_another_process_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LISTEN_FDS counts only for the process named in LISTEN_PID, and only once."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert take_systemd_sockets() == []
    assert "LISTEN_FDS" not in os.environ


# --------------------------------------------------------------------------- data directory


def test_a_data_directory_is_private(tmp_path: Path) -> None:
    """It is made with all above it, for its owner alone; a second time changes nothing."""
    data = tmp_path / "a" / "b"
    for _ in range(2):
        prepare_data_dir(data, None)
    assert [path.stat().st_mode & 0o777 for path in (data, data / "run")] == [0o700, 0o700]


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    """A file in its place is a configuration mistake."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        prepare_data_dir(tmp_path / "file", None)


def test_the_lock_is_held_once(tmp_path: Path) -> None:
    """One holder at a time; asking creates nothing."""
    prepare_data_dir(tmp_path, None)
    assert not is_locked(tmp_path)
    assert list((tmp_path / "run").iterdir()) == []
    lock = NodeLock(tmp_path)
    assert is_locked(tmp_path)
    with pytest.raises(StorageBusy):
        NodeLock(tmp_path)
    lock.release()
    assert not is_locked(tmp_path)


def test_every_shard_has_one_worker(tmp_path: Path) -> None:
    """However many workers there are, each shard on disk belongs to exactly one of them."""
    for shard in (0, 1, 2, 5, 9):
        (tmp_path / "spool" / str(shard)).mkdir(parents=True)
    for stray in ("x", "-1", "256", "\u0663"):
        (tmp_path / "spool" / stray).mkdir()
    assert find_shards(tmp_path) == [0, 1, 2, 5, 9]
    for workers in (1, 2, 3, 10):
        of_workers = [shards_of_worker(tmp_path, index, workers) for index in range(workers)]
        assert [shards[0] for shards in of_workers] == list(range(workers))
        everything = sorted(shard for shards in of_workers for shard in shards)
        assert everything == sorted({0, 1, 2, 5, 9, *range(workers)})
    assert find_shards(tmp_path / "none") == []


# --------------------------------------------------------------------------- log, packaging


def test_the_place_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said counts; "auto" outside a service is stderr."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert choose_log_place("auto") == "stderr"
    assert choose_log_place("/var/log/x") == "/var/log/x"
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")  # somebody else's
    assert choose_log_place("auto") == "stderr"


def test_the_unit_files_say_what_the_node_counts_on() -> None:
    """The service is watched, reloads by SIGHUP, and gets the one capability it needs."""
    packaging = Path(__file__).parents[3] / "packaging"
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(packaging / "posthouse.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["ExecReload"].endswith("-HUP $MAINPID")
    assert service["KillMode"] == "mixed"
    assert service["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
    assert "AF_NETLINK" in service["RestrictAddressFamilies"]
    assert {"WatchdogSec", "StateDirectory", "NoNewPrivileges", "ProtectSystem"} <= set(service)
    assert "ListenStream=[::]:25" in (packaging / "posthouse.socket").read_text()


# --------------------------------------------------------------------------- stepping down


def test_a_second_node_on_the_same_port_is_told(tmp_path: Path) -> None:
    """Even sockets that share their port are found out before anybody's client goes astray."""
    first = open_listeners([Endpoint(address="127.0.0.1", port=0)], 2)
    try:
        port = first.by_worker[0][0].getsockname()[1]
        with pytest.raises(ConfigError, match="Address already in use"):
            open_listeners([Endpoint(address="127.0.0.1", port=port)], 2)
    finally:
        first.close()


def test_the_holder_of_a_directory_is_named(tmp_path: Path) -> None:
    """Who finds it taken hears by whom."""
    prepare_data_dir(tmp_path, None)
    lock = NodeLock(tmp_path, what="a posthouse command")
    with pytest.raises(StorageBusy, match=rf"a posthouse command uses .* \(pid {os.getpid()}\)"):
        NodeLock(tmp_path)
    lock.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_follows_no_link_of_the_account(tmp_path: Path) -> None:
    """A link laid by the account leads neither the log nor the hand-over to files of root."""
    account = pwd.getpwnam("nobody")
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == 0 and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o011)
    victim = tmp_path / "victim"
    victim.write_text("root's\n")
    victim.chmod(0o600)
    data = tmp_path / "data"
    (data / "run").mkdir(parents=True)
    (data / "log").symlink_to(victim)
    (data / "own").write_text("")
    os.link(victim, data / "hard")
    prepare_data_dir(data, account)
    config = read(tmp_path, TEXT + f'[log]\nto = "{data}/log"\n')
    configure_log(config, account=account)
    observe.note("master", "here")
    observe.configure(to="stderr")
    assert victim.stat().st_uid == 0
    assert victim.read_text() == "root's\n"
    assert (data / "own").stat().st_uid == account.pw_uid
    config = read(tmp_path, TEXT + f'[log]\nto = "{data}/fresh"\n')
    configure_log(config, account=account)
    observe.configure(to="stderr")
    assert (data / "fresh").stat().st_uid == account.pw_uid
    assert os.geteuid() == 0


def test_sessions_are_capped_by_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker takes no more sessions than it may open files, some kept for itself."""
    monkeypatch.setattr("resource.getrlimit", lambda _which: (80, 80))
    assert node_settings.make_door(read(tmp_path), 1).max_connections == 40
    monkeypatch.setattr("resource.getrlimit", lambda _which: (1024, 1024))
    assert node_settings.make_door(read(tmp_path), 1).max_connections == 768

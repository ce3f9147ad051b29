"""A whole node: replaced workers, reloads, the end, sockets from outside, another user."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import smtplib
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peers.node import POSTHOUSE, PosthouseNode
from peers.processes import Running, answers, free_port, wait_until

NOWHERE = "smtp://127.0.0.1:1"
TEXT = b"Subject: x\r\n\r\nhello\r\n"


@contextlib.contextmanager
def client(port: int) -> Iterator[smtplib.SMTP]:
    session = smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=30)
    try:
        yield session
    finally:
        session.close()


def send(port: int, to: str = "user@example.com") -> None:
    with client(port) as session:
        session.sendmail("a@sender.example", [to], TEXT)


def begin_data(session: smtplib.SMTP) -> None:
    """Go as far as the 354."""
    session.ehlo()
    assert session.mail("a@sender.example")[0] == 250
    assert session.rcpt("user@example.com")[0] == 250
    assert session.docmd("DATA")[0] == 354


def finish_data(session: smtplib.SMTP) -> int:
    session.send(TEXT + b".\r\n")
    return session.getreply()[0]


def worker_pids(node: PosthouseNode) -> set[int]:
    return {worker["pid"] for worker in node.status()["workers"]}


def test_a_killed_worker_is_replaced_and_its_mail_is_there(tmp_path: Path) -> None:
    """kill -9 of a worker loses nothing; clients of the moment wait and are not refused."""
    with PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=2) as node:
        for _ in range(10):
            send(node.port)
        before = worker_pids(node)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for _ in range(10):
            send(node.port)
        node.wait_queue(20)
        assert worker_pids(node).isdisjoint(before)
        assert "was killed by SIGKILL; starts again" in node.log()


def test_workers_wait_for_turns(tmp_path: Path) -> None:
    """All threads of a worker are batch ones; the control process is not held back."""
    with PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1) as node:
        [worker] = worker_pids(node)
        threads = [int(name) for name in os.listdir(f"/proc/{worker}/task")]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}
        assert os.sched_getscheduler(node.running.pid) == os.SCHED_OTHER


def test_reload_keeps_sessions_and_brings_new_settings(tmp_path: Path) -> None:
    """SIGHUP puts domains, limits and lists in force; a message under way is not disturbed."""
    with PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1) as node:
        with client(node.port) as session, client(node.port) as early:
            begin_data(session)
            early.ehlo()
            (tmp_path / "more").write_text("new@example.org\n")
            node.domains.append({"name": "example.org", "recipients": str(tmp_path / "more")})
            node.settings["smtp"]["max_message_size"] = "100kB"
            node.write()
            node.running.send_signal(signal.SIGHUP)
            node.wait_log("worker 0: reloaded")
            node.wait_log("example.org: 1 recipients")
            assert finish_data(session) == 250
            assert early.noop()[0] == 250
        wait_until(
            lambda: node.status()["domains"][1]["recipients"]["entries"] == 1, what="the new list"
        )
        send(node.port, "new@example.org")
        with client(node.port) as session:
            session.ehlo()
            assert session.esmtp_features["size"] == "100000"
        assert len(node.queue()) == 2


def test_a_bad_new_configuration_changes_nothing(tmp_path: Path) -> None:
    """After SIGHUP with a mistake the old configuration stays, and the log names the mistake."""
    with PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1) as node:
        node.settings["smtp"]["max_recipient"] = 7
        node.write()
        node.running.send_signal(signal.SIGHUP)
        node.wait_log("unknown key; did you mean max_recipients?")
        node.wait_log("the old configuration stays in force")
        send(node.port)
        assert "worker 0: reloaded" not in node.log()
        del node.settings["smtp"]["max_recipient"]
        node.write()
        node.running.send_signal(signal.SIGHUP)
        node.wait_log("worker 0: reloaded")


def test_what_needs_a_restart_is_told(tmp_path: Path) -> None:
    """A change that a reload cannot take up is named in the log."""
    with PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1) as node:
        node.settings[""]["workers"] = 2
        node.write()
        node.running.send_signal(signal.SIGHUP)
        node.wait_log("workers has changed: it counts after a restart")


def test_the_log_file_is_opened_anew(tmp_path: Path) -> None:
    """After a rotation and SIGHUP every process writes to the new file."""
    with PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1) as node:
        node.log_file.rename(tmp_path / "mail.log.1")
        node.running.send_signal(signal.SIGHUP)
        node.wait_log("worker 0: reloaded")
        send(node.port)
        node.wait_log("from=<a@sender.example>")
        assert "from=<a@sender.example>" not in (tmp_path / "mail.log.1").read_text()


def test_the_end_lets_messages_finish(tmp_path: Path) -> None:
    """After SIGTERM a message under way gets its 250, idle clients hear 421, the port is closed."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1)
    with node, client(node.port) as busy, client(node.port) as idle:
        begin_data(busy)
        idle.ehlo()
        node.running.send_signal(signal.SIGTERM)
        assert idle.getreply()[0] == 421
        assert finish_data(busy) == 250
        assert node.stop() == 0
    assert not answers(node.port)
    assert len(node.queue()) == 1


def test_the_end_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A session that does not finish within shutdown_grace is cut; its message is not there."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1, top={"shutdown_grace": "200ms"})
    with node, client(node.port) as busy:
        begin_data(busy)
        assert node.stop() == 0
    assert node.queue() == []


def test_a_second_signal_hurries(tmp_path: Path) -> None:
    """SIGTERM twice ends running sessions at once."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1, top={"shutdown_grace": "1h"})
    with node, client(node.port) as busy:
        begin_data(busy)
        node.running.send_signal(signal.SIGTERM)
        node.wait_log("running sessions may finish")
        assert node.stop() == 0


def test_fewer_workers_bring_home_what_more_have_taken(tmp_path: Path) -> None:
    """Shards beyond the number of workers stay visible and are worked on."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=4)
    with node:
        for _ in range(20):
            send(node.port)
        assert len({int(message["id"][-2:], 16) for message in node.queue()}) > 1
    node.settings[""]["workers"] = 1
    node.write()
    with node:
        assert len(node.queue()) == 20
        (worker,) = node.status()["workers"]
        assert worker["shards"] == [0, 1, 2, 3]
        send(node.port)
        node.wait_queue(21)


def test_one_node_a_directory(tmp_path: Path) -> None:
    """A second node on the same data directory ends with 69 and says why; the first goes on."""
    with PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1) as node:
        node.settings["smtp"]["listen"] = ["127.0.0.1:0"]
        node.write()
        second = node.command("serve", check=False)
        assert second.returncode == 69
        assert "another node uses" in second.stderr
        send(node.port)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A port of somebody else is a mistake with its remedy, exit 78."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE])
    with socket.create_server(("127.0.0.1", node.port)):
        done = node.command("serve", check=False)
    assert done.returncode == 78
    assert f"cannot listen on 127.0.0.1:{node.port}" in done.stderr


SERVICE_MANAGER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], [sys.argv[2], "serve", "-c", sys.argv[3]])
"""


def test_sockets_from_the_service_manager(tmp_path: Path) -> None:
    """Sockets handed over (LISTEN_FDS) are used in place of smtp.listen, by every worker."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=2)
    port = free_port()
    arguments = [sys.executable, "-c", SERVICE_MANAGER, str(port), str(POSTHOUSE), str(node.file)]
    with Running(arguments, output=tmp_path / "output") as running:
        running.wait_answering(port)
        for _ in range(10):
            send(port)
        facts = json.loads((tmp_path / "data" / "run" / "node.json").read_text())
        assert facts["listen"] == [f"127.0.0.1:{port}"]
        assert not answers(node.port)
        node.wait_queue(10)
        assert running.stop() == 0


def test_root_steps_down() -> None:
    """Started as root with `user`, every process runs as that user, without a way back."""
    with tempfile.TemporaryDirectory() as place:  # where another user can go, unlike tmp_path
        Path(place).chmod(0o755)
        node = PosthouseNode(
            Path(place) / "node", next_hop=[NOWHERE], workers=1, top={"user": "nobody"}
        )
        if os.geteuid() != 0:
            done = node.command("serve", check=False)
            assert done.returncode == 78
            assert "cannot become nobody" in done.stderr
            return
        nobody = pwd.getpwnam("nobody")
        with node:
            send(node.port)
            pids = {node.running.pid, *worker_pids(node)}
            for pid in pids:
                facts = dict(
                    line.split(":\t", 1)
                    for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                )
                assert facts["Uid"].split() == [str(nobody.pw_uid)] * 4
                assert facts["Gid"].split() == [str(nobody.pw_gid)] * 4
                assert "0" not in facts["Groups"].split()
                assert int(facts["CapEff"], 16) == 0
                assert facts["NoNewPrivs"] == "1"
            data = node.directory / "data"
            assert {path.stat().st_uid for path in (data, *data.rglob("*"))} == {nobody.pw_uid}
            assert data.stat().st_mode & 0o777 == 0o700
            assert node.log_file.stat().st_uid == nobody.pw_uid
            node.running.send_signal(signal.SIGHUP)
            node.wait_log("worker 0: reloaded")
            send(node.port)
        assert len(node.queue()) == 2
        assert {path.stat().st_uid for path in data.rglob("*")} == {nobody.pw_uid}


def test_a_key_that_the_user_cannot_read_is_told_at_the_start(tmp_path: Path) -> None:
    """Root's own key is refused before anything is served: SIGHUP could never read it again."""
    import trustme

    issued = trustme.CA().issue_cert("mx2.example.net")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "key.pem").chmod(0o600 if os.geteuid() == 0 else 0)
    node = PosthouseNode(
        tmp_path,
        next_hop=[NOWHERE],
        top={"user": "nobody"} if os.geteuid() == 0 else {},
        smtp={"certificate": str(tmp_path / "cert.pem"), "private_key": str(tmp_path / "key.pem")},
    )
    done = node.command("serve", check=False)
    assert done.returncode == 78
    assert "key.pem cannot be read" in done.stderr

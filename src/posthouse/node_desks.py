"""How the operator's commands reach a node's control desks, running or not.

A running node answers at `data_dir/run/worker-<i>.sock`. Without one a child
process opens every shard, as the user who owns them, and answers over a socket
pair; a node that starts meanwhile waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NoReturn

from posthouse.config_schema import Config
from posthouse.errors import PosthouseError, StorageError
from posthouse.interfaces.control_wire import Failure, encode_line
from posthouse.node_user import NodeLock, become, find_owner, is_locked

# A worker that was just restarted is back within this time.
CONNECT_SECONDS: Final = 10.0


class NodeUnreachable(PosthouseError):
    """No desk answers."""


@contextlib.contextmanager
def connect_desks(config: Config) -> Iterator[tuple[list[socket.socket], bool]]:
    """Connections to all desks, by worker, and whether a running node answers.

    Raises NodeUnreachable, StorageError, PermissionError.
    """
    if not config.data_dir.is_dir():
        raise NodeUnreachable(f"{config.data_dir} does not exist: no node has run here yet")
    os.listdir(config.data_dir)  # a plain PermissionError now instead of a riddle later
    connections = _connect_workers(config.data_dir)
    if connections is not None:
        yield connections, True
        return
    connection, pid = _fork_desk(config)
    try:
        yield [connection], False
    finally:
        connection.close()
        os.waitpid(pid, 0)


def _connect_workers(data_dir: Path) -> list[socket.socket] | None:
    """A connection to each worker that answers; the others are named. None: no node runs.

    Raises NodeUnreachable when none answers.
    """
    run = data_dir / "run"
    deadline = time.monotonic() + CONNECT_SECONDS
    connections: dict[int, socket.socket] = {}
    workers = 0
    while is_locked(data_dir):
        try:
            workers = int(json.loads((run / "node.json").read_bytes())["workers"])
        except FileNotFoundError:
            workers = 0
        for index in range(workers):
            if index not in connections:
                with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                    connections[index] = _connect(run, f"worker-{index}.sock")
        if workers and len(connections) == workers:
            break
        if time.monotonic() > deadline:
            _tell_missing(connections, workers)
            break
        time.sleep(0.05)
    else:
        for connection in connections.values():
            connection.close()
        return None
    return [connections[index] for index in sorted(connections)]


def _tell_missing(connections: Collection[int], workers: int) -> None:
    missing = [str(index) for index in range(workers) if index not in connections]
    if not connections:
        raise NodeUnreachable("no worker answers; see the node's log")
    noun = "worker" if len(missing) == 1 else "workers"
    told = f"posthouse: {noun} {', '.join(missing)} gave no answer: what is there is not shown"
    print(told, file=sys.stderr)


def _connect(directory: Path, name: str) -> socket.socket:
    """Connect through /proc: a socket address holds 107 octets, which is little for a path."""
    holder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{holder}/{name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(holder)
    return connection


def _fork_desk(config: Config) -> tuple[socket.socket, int]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _run_desk(config, theirs)
    theirs.close()
    return ours, pid


def _run_desk(config: Config, connection: socket.socket) -> NoReturn:
    """In the child: serve until the other end is closed. Never returns."""
    code = 1
    try:
        # Ctrl-C is for the command; we end, in good order, when it closes its end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Before we are somebody who may not be allowed where our code is installed.
        from posthouse.node_spools import serve_desk

        if os.geteuid() == 0:  # what root makes here the node could not write
            become(find_owner(config.data_dir))
        (config.data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        NodeLock(config.data_dir, wait_seconds=CONNECT_SECONDS, what="a posthouse command")
        asyncio.run(serve_desk(config, connection))
        code = 0
    except StorageError as error:
        _send_failure(connection, "storage", error.detail)
    except BaseException as error:
        _send_failure(connection, "internal", f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _send_failure(connection: socket.socket, kind: str, text: str) -> None:
    with contextlib.suppress(OSError):
        connection.setblocking(True)
        connection.sendall(encode_line(Failure(kind, text)))

"""Listening sockets: bound by the supervisor, kept open by it, used by the workers.

Each worker has its own SO_REUSEPORT socket for each address, so the kernel
spreads connections and no worker wakes another. Sockets handed over by systemd
(sd_listen_fds(3)) are shared by all workers instead.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import socket
from collections.abc import Sequence

from posthouse.config_values import Endpoint
from posthouse.errors import ConfigError

# Connections that may wait for a worker, e.g. while it is restarted. The kernel
# caps it at net.core.somaxconn (4096 on current Linux).
BACKLOG = 4096
_FIRST_FD = 3


@dataclasses.dataclass(slots=True)
class Listeners:
    """The sockets of each worker, by worker index."""

    by_worker: list[list[socket.socket]]

    def addresses(self) -> list[str]:
        """Where they listen, each once, ports as the system gave them."""
        names = (_name(listener) for row in self.by_worker[:1] for listener in row)
        return list(dict.fromkeys(names))

    def close(self) -> None:
        """Close the supervisor's copies: from then on clients are refused."""
        for row in self.by_worker:
            for listener in row:
                listener.close()

    def close_others(self, worker: int) -> None:
        """In a worker: close what belongs to the others."""
        mine = {listener.fileno() for listener in self.by_worker[worker]}
        for row in self.by_worker:
            for listener in row:
                if listener.fileno() not in mine and listener.fileno() >= 0:
                    listener.close()


def _name(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, tuple):
        return str(Endpoint(address=name[0], port=name[1]))
    return os.fsdecode(name)


def name_sockets(listeners: Sequence[socket.socket]) -> list[tuple[str, int]]:
    """Addresses and ports; sockets of other families have none."""
    names = [listener.getsockname() for listener in listeners]
    return [(name[0], name[1]) for name in names if isinstance(name, tuple)]


def open_listeners(
    endpoints: Sequence[Endpoint], workers: int, *, key: str = "smtp.listen"
) -> Listeners:
    """Take systemd's sockets, or bind one for each worker and endpoint.

    key: of the configuration, for mistakes.
    Raises ConfigError naming every address that cannot be bound.
    """
    handed = take_systemd_sockets()
    if handed:
        return Listeners([list(handed) for _ in range(workers)])
    rows: list[list[socket.socket]] = [[] for _ in range(workers)]
    mistakes: list[str] = []
    for endpoint in endpoints:
        try:
            port = endpoint.port
            if port:
                _bind(endpoint.address, port, shared=False).close()
            for row in rows:
                listener = _bind(endpoint.address, port)
                row.append(listener)
                port = listener.getsockname()[1]  # a port the system chose is shared by all
        except OSError as error:
            mistakes.append(f"{key}: cannot listen on {endpoint}: {_explain(error)}")
    listeners = Listeners(rows)
    if mistakes:
        listeners.close()
        raise ConfigError(mistakes)
    return listeners


def _explain(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"{error.strerror}; start as root with user set, give CAP_NET_BIND_SERVICE, "
            "or use systemd sockets"
        )
    if error.errno == 98:
        return f"{error.strerror}; stop the other server on this port"
    return error.strerror or str(error)


def _bind(address: str, port: int, *, shared: bool = True) -> socket.socket:
    """Bind and listen. shared: for a group of sockets on one port.

    Not shared it is a probe: the group would join that of another node of ours unseen.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # With the protocol named, asyncio switches Nagle off on what is accepted (uvloop always does).
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((address, port))
        if shared:
            listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def take_systemd_sockets() -> list[socket.socket]:
    """The stream sockets systemd handed to this process, once; else nothing."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    taken = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
        if listener.type != socket.SOCK_STREAM:
            listener.close()
            continue
        listener.setblocking(False)
        taken.append(listener)
    return taken


def raise_file_limit() -> int:
    """Allow as many open files as the system lets us; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            return soft
    return soft

"""Who hears what a door sees of its clients: the log, or nobody.

The private door of a turned line (`node_odmr`) has this node's own relays as
clients. They log every outcome themselves; a second line for it, from
"unknown[127.0.0.1]", would be counted twice in a report, and could have a
fail2ban lock out this host.
"""

from __future__ import annotations

from typing import Protocol


class DoorLog(Protocol):
    """The events of sessions; `posthouse.observe` says what each means, and is one."""

    def client_connected(self, name: str, address: str, port: int) -> None: ...

    def client_gone(self, name: str, address: str, *, commands: int, messages: int) -> None: ...

    def connection_refused(self, address: str, reply: str) -> None: ...

    def session_cut(self, name: str, address: str, after: str, why: str) -> None: ...

    def recipient_refused(
        self,
        name: str,
        address: str,
        reply: str,
        recipient: str,
        sender: str,
        proto: str,
        helo: str,
    ) -> None: ...

    def command_refused(
        self,
        name: str,
        address: str,
        stage: str,
        reply: str,
        proto: str,
        helo: str,
        sender: str | None,
    ) -> None: ...


class QuietLog:
    """Says nothing and counts nothing: the clients are this node's own."""

    def client_connected(self, name: str, address: str, port: int) -> None:
        """See `DoorLog`."""

    def client_gone(self, name: str, address: str, *, commands: int, messages: int) -> None:
        """See `DoorLog`."""

    def connection_refused(self, address: str, reply: str) -> None:
        """See `DoorLog`."""

    def session_cut(self, name: str, address: str, after: str, why: str) -> None:
        """See `DoorLog`."""

    def recipient_refused(
        self,
        name: str,
        address: str,
        reply: str,
        recipient: str,
        sender: str,
        proto: str,
        helo: str,
    ) -> None:
        """See `DoorLog`."""

    def command_refused(
        self,
        name: str,
        address: str,
        stage: str,
        reply: str,
        proto: str,
        helo: str,
        sender: str | None,
    ) -> None:
        """See `DoorLog`."""

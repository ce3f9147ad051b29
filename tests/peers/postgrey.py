"""A real postgrey for a primary: `smtpd_recipient_restrictions = check_policy_service …`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from peers.processes import PeerFailed, Running, find_program, free_port, wait_until


class Postgrey:
    """Greylists every triplet for `delay` seconds; nobody is whitelisted, ever.

    directory: for its memory. socket: listen there instead of at a port.
    """

    def __init__(self, directory: Path, *, delay: int = 2, socket: Path | None = None) -> None:
        self.port = free_port() if socket is None else 0
        self._socket = socket
        nobody = directory / "nobody"
        nobody.write_text("")
        database = directory / "postgrey"
        database.mkdir()
        self._arguments = [
            find_program("postgrey", "postgrey"),
            f"--inet=127.0.0.1:{self.port}" if socket is None else f"--unix={socket}",
            f"--dbdir={database}",
            f"--delay={delay}",
            f"--whitelist-clients={nobody}",
            f"--whitelist-recipients={nobody}",
            "--auto-whitelist-clients=0",
            "--user=root",
            "--group=root",
            "--socketmode=0666",
        ]
        self._output = directory / "postgrey.log"
        self._running: Running | None = None

    @property
    def policy(self) -> str:
        """The word for `smtpd_recipient_restrictions`."""
        place = f"inet:127.0.0.1:{self.port}" if self._socket is None else f"unix:{self._socket}"
        return f"check_policy_service {place}"

    def __enter__(self) -> Self:
        running = self._running = Running(self._arguments, output=self._output)
        if self._socket is None:
            running.wait_answering(self.port, seconds=20)
            return self
        try:
            wait_until(self._is_ready, what="postgrey's socket")
        except PeerFailed as error:
            running.stop()
            raise PeerFailed(f"{error}: {running.said()}") from error
        return self

    def _is_ready(self) -> bool:
        """The socket is there, and Postfix may use it."""
        socket = self._socket
        assert socket is not None
        return socket.is_socket() and socket.stat().st_mode & 0o777 == 0o666

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None:
            self._running.stop(seconds=10)

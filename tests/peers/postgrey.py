"""A throw-away postgrey: greylists at a Unix socket, remembers in its own directory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from peers.processes import Running, find_program, wait_until


class Postgrey:
    """Answers `DEFER_IF_PERMIT Greylisted` to every client it sees for the first time.

    socket: where Postfix asks it; its directory must exist.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._database = Path(tempfile.mkdtemp(prefix="postgrey-"))
        self._running: Running | None = None

    def __enter__(self) -> Self:
        none = self._database / "none"
        none.touch()
        self._running = Running(
            [
                find_program("postgrey", "postgrey"),
                f"--unix={self.socket}",
                f"--dbdir={self._database}",
                f"--whitelist-clients={none}",
                f"--whitelist-recipients={none}",
                "--auto-whitelist-clients=0",
                "--user=root",
                "--group=root",
                "--socketmode=0666",
            ],
            output=self._database / "log",
        )
        try:
            wait_until(self.socket.is_socket, what=f"postgrey: {self._running.said()}")
            wait_until(lambda: self.socket.stat().st_mode & 0o777 == 0o666, what="its mode")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None:
            self._running.stop()
        shutil.rmtree(self._database, ignore_errors=True)

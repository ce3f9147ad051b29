"""A real postgrey for a primary: `smtpd_recipient_restrictions = check_policy_service …`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from peers.processes import Running, find_program, free_port


class Postgrey:
    """Greylists every triplet for `delay` seconds; nobody is whitelisted, ever."""

    def __init__(self, directory: Path, *, delay: int = 2) -> None:
        self.port = free_port()
        nobody = directory / "nobody"
        nobody.write_text("")
        database = directory / "postgrey"
        database.mkdir()
        self._arguments = [
            find_program("postgrey", "postgrey"),
            f"--inet=127.0.0.1:{self.port}",
            f"--dbdir={database}",
            f"--delay={delay}",
            f"--whitelist-clients={nobody}",
            f"--whitelist-recipients={nobody}",
            "--auto-whitelist-clients=0",
            "--user=root",
            "--group=root",
        ]
        self._output = directory / "postgrey.log"
        self._running: Running | None = None

    @property
    def policy(self) -> str:
        """The word for `smtpd_recipient_restrictions`."""
        return f"check_policy_service inet:127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._running = Running(self._arguments, output=self._output)
        self._running.wait_answering(self.port, seconds=20)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None:
            self._running.stop(seconds=10)

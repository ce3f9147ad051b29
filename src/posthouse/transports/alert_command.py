"""Alerts given to a program: the notice as JSON on its standard input.

No shell: the words of the configuration are the arguments, as they are, and
nothing of an alert is ever one of them. The program gets a bounded time and a
process group of its own, which is killed whole when the time is over. Exit
status 0 means taken in charge; the first line of its standard error says why not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from posthouse.errors import TellingFailed
from posthouse.log_sink import clean
from posthouse.ports_alerts import Notice

RUN_SECONDS: Final = 30.0
MAX_TOLD_BYTES: Final = 4096


class AlertCommand:
    """See `ports_alerts.AlertChannel`. `document` makes what the program reads."""

    name = "command"

    def __init__(
        self,
        words: Sequence[str],
        *,
        document: Callable[[Notice], object],
        run_seconds: float = RUN_SECONDS,
    ) -> None:
        self._words = tuple(words)
        self._document = document
        self._run_seconds = run_seconds

    async def deliver(self, notice: Notice) -> None:
        """See `ports_alerts.AlertChannel`."""
        octets = msgspec.json.encode(self._document(notice)) + b"\n"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                preexec_fn=_hear_signals,
            )
        except (OSError, ValueError) as error:
            raise TellingFailed(f"{self._words[0]}: {error}") from error
        try:
            async with asyncio.timeout(self._run_seconds):
                told = await _talk(process, octets)
                status = await process.wait()
        except TimeoutError:
            raise TellingFailed(f"{self._words[0]}: took over {self._run_seconds:g} s") from None
        finally:
            await _end(process)
        if status:
            first = told.decode("utf-8", "replace").strip().partition("\n")[0]
            raise TellingFailed(f"{self._words[0]}: exit status {status} {clean(first)}".rstrip())


def _hear_signals() -> None:
    """A node's processes block most signals; the program starts like any other."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


async def _talk(process: asyncio.subprocess.Process, octets: bytes) -> bytes:
    """Give it the notice; what it says on standard error, the beginning of it."""
    assert process.stdin is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read it
        process.stdin.write(octets)
        await process.stdin.drain()
    process.stdin.close()
    told = b""
    while piece := await process.stderr.read(MAX_TOLD_BYTES):
        told += piece[: MAX_TOLD_BYTES - len(told)]
    return told


async def _end(process: asyncio.subprocess.Process) -> None:
    """Nothing of it is left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()

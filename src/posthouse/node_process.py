"""What every process of a node does around its event loop: beat, log, hear signals, end.

SIGTERM sets `stopping`, a second one `hurry`; SIGHUP reads the configuration
again and hands it to the duty, which puts it in force while it goes on working.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pwd
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from posthouse import observe
from posthouse.config import load
from posthouse.config_schema import Config, LogConfig
from posthouse.errors import PosthouseError
from posthouse.node_user import acting_as, hand_over_file
from posthouse.supervisor import Heartbeat

BEAT_SECONDS: Final = 1.0


def clock_us() -> int:
    """Microseconds since 1970: the node's clock, handed to everybody."""
    return time.time_ns() // 1000


def elapsed_us() -> int:
    """Microseconds since some instant; nobody sets this clock, and it stands while we sleep."""
    return time.monotonic_ns() // 1000


def run_in_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run a process's main coroutine, on uvloop where it is installed and not declined."""
    with asyncio.Runner(loop_factory=find_loop_factory()) as runner:
        return runner.run(work)


def find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed and POSTHOUSE_UVLOOP is not 0; None for asyncio's own."""
    if os.environ.get("POSTHOUSE_UVLOOP", "1") == "0":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class Configured(Protocol):
    """What a process needs of its configuration, be it a node's or a primary's."""

    @property
    def file(self) -> Path: ...
    @property
    def hostname(self) -> str: ...
    @property
    def log(self) -> LogConfig: ...


C = TypeVar("C", bound=Configured)


def read_again(file: Path) -> Config:
    """Read posthouse.toml as a running node does."""
    return load(file, lists_may_wait=True)


class Process(Generic[C]):
    """One process; made inside its event loop. `reload` puts a new configuration in force.

    read: how the configuration is read again, in a thread.
    """

    def __init__(
        self,
        config: C,
        heartbeat: Heartbeat,
        reload: Callable[[C], Awaitable[None]],
        *,
        read: Callable[[Path], C],
    ) -> None:
        self.config = config
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self.failed = False
        self._serves = False
        self._heartbeat = heartbeat
        self._reload = reload
        self._read = read
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False
        loop = asyncio.get_running_loop()
        configure_log(config)
        observe.gather_with(loop.call_soon, loop.call_later)
        loop.add_signal_handler(signal.SIGTERM, self._on_term)

    def serve(self) -> None:
        """Say that this process serves, and go on saying that its loop turns. Again: no-op."""
        if self._serves:
            return
        self._serves = True
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hup)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        # What lives now lives until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self._heartbeat.ready()
        self._beat()

    def keep(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run a task that must not end; when it does the process ends and is replaced."""
        task = asyncio.get_running_loop().create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    async def end_tasks(self) -> None:
        """Cancel what `keep` started, and a reload under way. The loop beats on."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        for task in self._tasks:
            task.remove_done_callback(self._on_end)
        ending = [*self._tasks, *([self._reloading] if self._reloading is not None else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _beat(self) -> None:
        self._heartbeat.beat()
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            observe.trouble("master", f"{task.get_name()} ended", task.exception())
        self.failed = True
        self.stopping.set()

    def _on_term(self) -> None:
        if self.stopping.is_set():
            self.hurry.set()
        self.stopping.set()

    def _on_hup(self) -> None:
        if self._reloading is not None:
            self._reload_again = True
        elif not self.stopping.is_set():
            self._reloading = asyncio.get_running_loop().create_task(self._read_again())
            self._reloading.add_done_callback(self._on_read)

    def _on_read(self, _task: asyncio.Task[None]) -> None:
        self._reloading = None
        if self._reload_again:
            self._reload_again = False
            self._on_hup()

    async def _read_again(self) -> None:
        try:
            config = await asyncio.to_thread(self._read, self.config.file)
            configure_log(config)
            await self._reload(config)
            self.config = config
        except PosthouseError as error:
            observe.trouble("master", "reload failed, the old configuration stays", error)
        except Exception as error:
            observe.trouble("master", "reload failed half way", error)


# --------------------------------------------------------------------------- the log


def choose_log_place(to: str) -> str:
    """What `log.to` means here: under systemd "auto" is syslog, which the journal reads too."""
    if to != "auto":
        return to
    return "syslog" if _stderr_is_journal() and Path("/dev/log").exists() else "stderr"


def _stderr_is_journal() -> bool:
    """Compare JOURNAL_STREAM with our stderr (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def configure_log(config: Configured, *, account: pwd.struct_passwd | None = None) -> None:
    """Open the log (again). Falls back to stderr and says so: a full or lost disk stops no mail.

    account: who gets a fresh log file, for root before it steps down. The file is
    opened with the account's rights: whoever owns the directory cannot make root
    write elsewhere.
    """
    log = config.log
    place = choose_log_place(log.to)
    is_file = place.startswith("/")
    try:
        if account is not None and is_file:
            hand_over_file(Path(place), account)
        with acting_as(account if is_file else None):
            observe.configure(fmt=log.format, to=place, tag=log.tag, hostname=config.hostname)
    except OSError as error:
        observe.configure(fmt=log.format, to="stderr", tag=log.tag, hostname=config.hostname)
        observe.trouble("master", f"cannot log to {place}", error)

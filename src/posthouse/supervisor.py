"""Starts processes, watches them, restarts those that die or hang, stops them all.

The supervisor has one thread and no event loop: it blocks its signals and
waits for the next with `sigtimedwait`, so nothing ever runs inside a handler
and every fork happens in a plain process. It does no mail work: whatever makes
a child crash cannot take it along.

What it holds open (listening sockets) its children inherit, so clients that
connect while a worker is being replaced wait in the backlog and are not refused.

Signals: SIGTERM, SIGINT stop in good order, a second one at once; SIGHUP reloads.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final

from posthouse import observe

# How long a child's loop may stand still before it is killed. No duty of a loop takes
# seconds; a minute forgives a stopped machine or a disk that went away and came back.
STUCK_SECONDS: Final = 60.0
# The supervisor looks once a second. When it was away for longer the whole machine was.
EXCUSE_SECONDS: Final = 5.0
# Until its first beat a child reads its shard: a million queued messages take seconds.
START_SECONDS: Final = 900.0
BACKOFF_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A child that lived this long before it died starts again without delay.
SETTLED_SECONDS: Final = 60.0
# Added to the children's own grace before they are killed.
KILL_SECONDS: Final = 10.0

_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
)
_SLOT: Final = struct.Struct("=dd")  # last beat (monotonic seconds), 1.0 once ready
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38


def block_signals() -> set[signal.Signals | int]:
    """Keep signals until `Supervisor.run` takes them; before, they would end us.

    Returns the mask of before.
    """
    return signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


class Heartbeat:
    """One child's place in memory shared with the supervisor. Costs no system call."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self._memory = memory
        self._offset = index * _SLOT.size

    def beat(self) -> None:
        """Say that the loop turns; the child calls it every second."""
        ready = _SLOT.unpack_from(self._memory, self._offset)[1]
        _SLOT.pack_into(self._memory, self._offset, time.monotonic(), ready)

    def ready(self) -> None:
        """Say that the child serves."""
        _SLOT.pack_into(self._memory, self._offset, time.monotonic(), 1.0)

    def clear(self) -> None:
        """Forget the child that was here (supervisor)."""
        _SLOT.pack_into(self._memory, self._offset, 0.0, 0.0)

    def read(self) -> tuple[float, bool]:
        """When it last beat (0.0: never), and whether it serves (supervisor)."""
        beat, ready = _SLOT.unpack_from(self._memory, self._offset)
        return beat, bool(ready)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """What one child does. `run` is called in the child and returns its exit code.

    SIGHUP is blocked when `run` begins, so that none is lost: unblock it once
    there is a handler. SIGTERM ends the child until it has a handler of its own.
    """

    name: str
    run: Callable[[Heartbeat], int]


@dataclasses.dataclass(slots=True)
class _Child:
    duty: Duty
    heartbeat: Heartbeat
    pid: int = 0
    started: float = 0.0
    failures: int = 0
    start_at: float = 0.0
    told_ready: bool = False


class Supervisor:
    """Keeps a set of duties running until told to stop.

    reload: called on SIGHUP; True when the children shall be told to reload.
    release: called once when stopping begins (close listening sockets).
    grace_seconds: what the children were promised for finishing; kill_seconds later
    they are killed. stuck_seconds: how long a loop may stand still.
    """

    def __init__(
        self,
        duties: Sequence[Duty],
        *,
        reload: Callable[[], bool] = lambda: False,
        release: Callable[[], None] = lambda: None,
        grace_seconds: float = 30.0,
        stuck_seconds: float = STUCK_SECONDS,
        kill_seconds: float = KILL_SECONDS,
        backoff_seconds: Sequence[float] = BACKOFF_SECONDS,
    ) -> None:
        size = max(1, len(duties)) * _SLOT.size
        memory = mmap.mmap(-1, size)
        self._children = [
            _Child(duty, Heartbeat(memory, index)) for index, duty in enumerate(duties)
        ]
        self._reload = reload
        self._release = release
        self.grace_seconds = grace_seconds
        self._stuck_seconds = stuck_seconds
        self._kill_seconds = kill_seconds
        self._backoff = backoff_seconds
        self._stop_by: float | None = None
        self._announced = False
        self._last_look = self._excused = 0.0
        self._begun = time.monotonic()

    def run(self) -> int:
        """Start all duties and return when all have ended: 0 after a stop in good order."""
        before = block_signals()
        try:
            while self._stop_by is None or any(child.pid for child in self._children):
                if self._stop_by is None:
                    self._start_due()
                self._watch()
                self._handle(signal.sigtimedwait(_SIGNALS, self._patience()))
            return 0
        finally:
            self._kill_all()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def is_ready(self, name: str) -> bool:
        """Tell whether a duty serves now; may be asked in children too."""
        return any(child.heartbeat.read()[1] for child in self._children if child.duty.name == name)

    # ------------------------------------------------------------------ signals

    def _patience(self) -> float:
        """How long to sleep: a second, or less when a start is due earlier."""
        now = time.monotonic()
        if self._stop_by is not None:
            return 0.5
        due = [child.start_at - now for child in self._children if not child.pid]
        quiet = self._announced or now - self._begun > 30
        return max(0.01, min([1.0, *due])) if quiet else 0.02

    def _handle(self, info: signal.struct_siginfo | None) -> None:
        if info is None:
            return
        if info.si_signo == signal.SIGCHLD:
            self._reap()
        elif info.si_signo == signal.SIGHUP:
            self._on_reload()
        else:
            self._on_stop()

    def _on_reload(self) -> None:
        if self._stop_by is not None:
            return
        notify_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        if self._reload():
            self._signal_all(signal.SIGHUP)
        notify_systemd("READY=1")

    def _on_stop(self) -> None:
        if self._stop_by is None:
            notify_systemd("STOPPING=1")
            observe.note("master", "stopping: running sessions may finish")
            self._stop_by = time.monotonic() + self.grace_seconds + self._kill_seconds
            self._release()
        else:
            observe.note("master", "stopping at once")
            self._stop_by = time.monotonic() + self._kill_seconds
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, number)

    # ------------------------------------------------------------------ children

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if not child.pid and child.start_at <= now:
                self._start(child, now)

    def _start(self, child: _Child, now: float) -> None:
        child.heartbeat.clear()
        child.told_ready = False
        child.started = now
        observe.flush()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or no memory: later
            self._plan_restart(child, now)
            observe.trouble("master", f"cannot start {child.duty.name}", error)
            return
        if pid == 0:
            _run_child(child.duty, child.heartbeat, parent)
        child.pid = pid

    def _reap(self) -> None:
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            child.pid = 0
            if self._stop_by is not None:
                continue
            now = time.monotonic()
            if now - child.started >= SETTLED_SECONDS:
                child.failures = 0
            wait = self._plan_restart(child, now)
            observe.alert(
                "process",
                f"{child.duty.name} (pid {pid}) {_describe_end(status)}; starts again in {wait:g}s",
            )

    def _plan_restart(self, child: _Child, now: float) -> float:
        wait = self._backoff[min(child.failures, len(self._backoff) - 1)]
        child.failures += 1
        child.start_at = now + wait
        return wait

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._last_look > EXCUSE_SECONDS:
            self._excused = now  # we stood still ourselves: so did they, and not for their fault
        self._last_look = now
        healthy = True
        for child in self._children:
            if not child.pid:
                continue
            beat, ready = child.heartbeat.read()
            if ready and not child.told_ready:
                child.told_ready = True
                observe.note("master", f"{child.duty.name} (pid {child.pid}) serves")
            limit = self._stuck_seconds if beat else START_SECONDS
            if now - max(beat or child.started, self._excused) > limit:
                healthy = False
                observe.alert("process", f"{child.duty.name} (pid {child.pid}) hangs: killed")
                os.kill(child.pid, signal.SIGKILL)
        if self._stop_by is not None and now > self._stop_by:
            observe.note("master", "not all processes ended in time: killed")
            self._signal_all(signal.SIGKILL)
        self._announce()
        if healthy:
            notify_systemd("WATCHDOG=1")

    def _announce(self) -> None:
        """Tell systemd once that we serve: every child does, or has failed and one does."""
        if self._announced or self._stop_by is not None:
            return
        serving = [child for child in self._children if child.told_ready]
        failing = [child for child in self._children if child.failures]
        if serving and len(serving) + len(failing) >= len(self._children):
            self._announced = True
            notify_systemd("READY=1")

    def _kill_all(self) -> None:
        """Leave nobody behind when the supervisor itself fails."""
        self._signal_all(signal.SIGKILL)
        for child in self._children:
            if child.pid:
                os.waitpid(child.pid, 0)
                child.pid = 0


def _run_child(duty: Duty, heartbeat: Heartbeat, parent: int) -> None:
    """Run a duty in the process just forked; never returns."""
    code = 70  # EX_SOFTWARE
    try:
        die_with_parent(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Ctrl-C reaches the whole process group; the supervisor turns it into SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_SIGNALS) - {signal.SIGHUP})
        code = duty.run(heartbeat)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        observe.trouble("master", f"{duty.name} failed", error)
        traceback.print_exc()
    finally:
        observe.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _describe_end(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


# --------------------------------------------------------------------------- the system


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the supervisor is gone, however it went."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the line above
        os._exit(1)


def forbid_new_privileges() -> None:
    """No set-user-id program can raise this process or its children again."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def notify_systemd(message: str) -> None:
    """Send a state to the service manager, if there is one (sd_notify(3)). Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.send(message.encode())
    except OSError as error:
        observe.trouble("master", "cannot reach the service manager", error)

"""A supervisor with toy duties, run as a program: `python -m fakes.supervised DUTY...`.

Every process tells what it does on standard output, one line a fact:
`NAME PID EVENT`. When standard output ends, the supervisor and all its
children are gone.
"""

from __future__ import annotations

import os
import signal
import sys

from posthouse import observe
from posthouse.supervisor import Duty, Heartbeat, Supervisor


def tell(name: str, event: str) -> None:
    os.write(1, f"{name} {os.getpid()} {event}\n".encode())


def _serve(name: str, heartbeat: Heartbeat, *, beats: bool = True, stoppable: bool = True) -> int:
    """Beat until SIGTERM; SIGHUP is told."""
    signals = {signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    heartbeat.ready()
    tell(name, "serves")
    while True:
        info = signal.sigtimedwait(signals, 0.02)
        if beats:
            heartbeat.beat()
        if info is None:
            continue
        if info.si_signo == signal.SIGHUP:
            tell(name, "reloaded")
        elif stoppable:
            tell(name, "finished")
            return 0
        else:
            tell(name, "goes on")


def steady(heartbeat: Heartbeat) -> int:
    """Do what is asked."""
    return _serve("steady", heartbeat)


def stuck(heartbeat: Heartbeat) -> int:
    """Stop beating."""
    return _serve("stuck", heartbeat, beats=False)


def stubborn(heartbeat: Heartbeat) -> int:
    """Ignore SIGTERM."""
    return _serve("stubborn", heartbeat, stoppable=False)


def broken(_heartbeat: Heartbeat) -> int:
    """Fail at once."""
    tell("broken", "fails")
    return 3


def faulty(_heartbeat: Heartbeat) -> int:
    """Raise at once."""
    tell("faulty", "raises")
    raise RuntimeError("a fault of our own")


def main() -> int:
    duties = {f.__name__: f for f in (steady, stuck, stubborn, broken, faulty)}
    observe.configure(to="stderr")

    def reload() -> bool:
        tell("supervisor", "reads")
        return os.environ.get("RELOAD") != "bad"

    supervisor = Supervisor(
        [Duty(name=name, run=duties[name]) for name in sys.argv[1:]],
        reload=reload,
        release=lambda: tell("supervisor", "releases"),
        grace_seconds=0.1,
        kill_seconds=0.2,
        stuck_seconds=0.3,
        backoff_seconds=(0.01, 0.05),
    )
    tell("supervisor", "begins")
    code = supervisor.run()
    tell("supervisor", "ends")
    return code


if __name__ == "__main__":
    sys.exit(main())

"""How the kernel's scheduler shares the cores among a worker and its neighbours.

A worker that is woken by a packet usually takes the core from whoever sent it, which on a
busy machine is another program in the middle of its work: two switches for each command,
and turns of the event loop that find one session ready instead of ten. As a batch process
it waits for the running program's turn to end, a few milliseconds at most, and finds more
to do. It keeps the same share of the cores (docs/decisions/0003-accept-speed.md).

Spec: sched(7), SCHED_BATCH.
"""

from __future__ import annotations

import os


def wait_for_turns() -> bool:
    """Make this thread, and those it will start, batch ones. False where that is not ours to say.

    A policy that an operator has chosen (chrt, CPUSchedulingPolicy= of systemd) stands.
    """
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return False
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux, or forbidden
        return False
    return True

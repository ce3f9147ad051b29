"""Workers wait for the turns of others, unless an operator has chosen for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH"), reason="batch scheduling is Linux's"
)

_WORK = """
import os, sys, threading
from posthouse.node_scheduling import wait_for_turns
if sys.argv[1:]:
    os.sched_setscheduler(0, int(sys.argv[1]), os.sched_param(0))
told = wait_for_turns()
seen = [os.sched_getscheduler(0)]
thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
print(int(told), *seen)
"""


def run(*arguments: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", _WORK, *arguments], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_a_worker_and_its_threads_are_batch() -> None:
    assert run() == [1, os.SCHED_BATCH, os.SCHED_BATCH]


def test_what_an_operator_chose_stands() -> None:
    assert run(str(os.SCHED_IDLE)) == [0, os.SCHED_IDLE, os.SCHED_IDLE]

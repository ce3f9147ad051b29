"""The C library keeps what a worker frees and needs again at once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

_WORK = """
import resource, sys
from posthouse.node_memory import keep_freed_memory
told = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytes(300_000)
before = faults()
for _ in range(200):
    held = [bytes(300_000) for _ in range(3)]
    del held
print(int(told), faults() - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", _WORK],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    told, faults = done.stdout.split()
    return told == "1", int(faults)


def test_freed_memory_is_used_again() -> None:
    """Messages that come and go cost no page faults, unless an operator set the library himself."""
    told, faults = run()
    assert told == (platform.libc_ver()[0] == "glibc")
    assert faults < 2000 or not told
    told, _ = run(MALLOC_TOP_PAD_="65536")
    assert not told

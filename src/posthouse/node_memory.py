"""How a worker's C library deals with freed memory.

glibc gives the end of its heap back to the kernel whenever 128 KiB lie free there. A
worker that takes mail frees a message and needs as much again at once, so each
message of 64 KiB cost dozens of page faults: 20 to 30 µs (docs/decisions/0003-accept-speed.md).
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

# mallopt(3), malloc.h of glibc.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 16 << 20
"""So much may lie free at the end of the heap; the rest goes back."""
_TOP_PAD_BYTES: Final = 1 << 20
_MAPPED_BYTES: Final = 1 << 20  # larger pieces are mapped by themselves, and given back whole


def keep_freed_memory() -> bool:
    """Have the C library keep a little of what was freed. False where that is not for us to say.

    An operator's own MALLOC_… settings stand, and another library than glibc is left alone.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = (
        (_M_MMAP_THRESHOLD, _MAPPED_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(option, value) == 1 for option, value in wanted)

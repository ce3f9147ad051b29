"""`posthouse` with a clock that a test sets: `python wrong_clock.py FILE ARGUMENTS`.

FILE has eight octets, the microseconds that the clock is ahead (signed, big-endian). Every
process of the node is forked from this one and sees a change at once.
"""

from __future__ import annotations

import mmap
import struct
import sys
from pathlib import Path

from posthouse import node_process

OFFSET = struct.Struct(">q")


class WrongClock:
    """The file, as a test writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, ahead_us: int) -> None:
        """Set the clock of whoever runs with this file."""
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(OFFSET.pack(ahead_us))

    @property
    def program(self) -> list[str]:
        """What to run in place of `posthouse`."""
        return [sys.executable, "-P", __file__, str(self.path)]


def main() -> None:
    """Set the clock, then be `posthouse`."""
    with Path(sys.argv.pop(1)).open("rb") as file:
        ahead = mmap.mmap(file.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    right = node_process.clock_us
    node_process.clock_us = lambda: right() + OFFSET.unpack_from(ahead)[0]
    from posthouse.cli.main import main as posthouse

    sys.argv[0] = "posthouse"
    posthouse()


if __name__ == "__main__":
    main()

"""Queue ids: one 59-bit integer a message, written as 15 upper-case hex digits.

Bits 58..8 are microseconds since 1970 (unique and ascending within a shard),
bits 7..0 the shard. So ids sort by time, never collide between shards, and the
shard is known from the id alone. Hex keeps them readable for tools that know
Postfix's short queue ids ([0-9A-F]{6,}).
"""

from __future__ import annotations

SHARD_BITS = 8
MAX_SHARDS = 1 << SHARD_BITS


def make_queue_id(now_us: int, shard: int) -> int:
    """Make the id of a message that arrives at `now_us` (microseconds) in `shard` (0..255)."""
    return (now_us << SHARD_BITS) | shard


def shard_of(queue_id: int) -> int:
    """The shard that holds the message."""
    return queue_id & (MAX_SHARDS - 1)


def time_us_of(queue_id: int) -> int:
    """When the message arrived, microseconds since 1970."""
    return queue_id >> SHARD_BITS


def format_queue_id(queue_id: int) -> str:
    """Write an id the way logs, replies and commands show it."""
    return f"{queue_id:015X}"


def parse_queue_id(text: str) -> int | None:
    """Read an id that a person typed; None when it is not one."""
    if not 8 <= len(text) <= 16:
        return None
    try:
        return int(text, 16)
    except ValueError:
        return None

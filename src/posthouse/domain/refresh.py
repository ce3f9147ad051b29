"""When to ask for a roster again.

After an answer that was good (304 and "set aside" included): in refresh_seconds,
±10 %, so that a thousand backups do not knock together. After a failure or a
refusal: soon, then ever later. Spec: docs/protocol.md "The roster", refresh_seconds.
"""

from __future__ import annotations

from typing import Final

MIN_SECONDS: Final = 60
MAX_SECONDS: Final = 86_400
DEFAULT_SECONDS: Final = 3600
"""Where no roster says otherwise, since there is none yet."""
MAX_BACKOFF_SECONDS: Final = 3600
_JITTER: Final = 0.1


def plan_refresh(
    refresh_seconds: int, *, failures: int, dice: float, retry_after: int | None = None
) -> float:
    """Seconds until the next attempt.

    refresh_seconds: as the roster in force has it; failures: in a row, up to now; dice: from
    [0, 1); retry_after: what the other side asked for, honoured up to an hour.
    """
    spread = 1 - _JITTER + 2 * _JITTER * dice
    if not failures:
        clamped = min(max(refresh_seconds, MIN_SECONDS), MAX_SECONDS)
        return min(max(clamped * spread, MIN_SECONDS), MAX_SECONDS)
    first = min(refresh_seconds, MIN_SECONDS)
    backoff = min(first * 2.0 ** min(failures - 1, 32), MAX_BACKOFF_SECONDS)
    return max(backoff, min(retry_after or 0, MAX_BACKOFF_SECONDS))

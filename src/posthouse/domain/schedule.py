"""When a deferred recipient is tried again.

`relay.retry` lists the delays; the last one repeats until the message expires.
Postfix backs off from 300 s to 4000 s, Exim from 15 min to 6 h; ours ends at
30 min by default, because a backup serves a few domains whose primary matters.
The schedule counts refusals of *this recipient* only: an outage of the next hop
spends no attempt.

Spec: RFC 5321 §4.5.4.1 (retry at intervals; some attempts within the first hour).
"""

from __future__ import annotations

from collections.abc import Sequence


def delay_us(retry: Sequence[int], attempts: int) -> int:
    """Microseconds to wait after the refusal that makes it `attempts` + 1 in all.

    retry: microseconds, not empty, each > 0. attempts: refusals before this one, >= 0.
    """
    return retry[min(attempts, len(retry) - 1)]

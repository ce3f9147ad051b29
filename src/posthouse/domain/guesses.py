"""How often a client network may ask for addresses that do not exist, where asking is dear.

A slow digest costs milliseconds of a core, and a thousand wrong guesses an hour
are a dictionary attack, not typing errors. So each network has a budget of
misses: a full one at first, regained evenly over an hour. Right guesses cost
nothing. Networks are forgotten when their budget is full again, the one longest
unseen first when there are too many.
"""

from __future__ import annotations

from typing import Final

MAX_NETWORKS: Final = 16_384
REFILL_SECONDS: Final = 3600


class GuessBudget:
    """Misses left, by client network. Instants are seconds of one clock that does not go back."""

    def __init__(self, misses_an_hour: int) -> None:
        """misses_an_hour: 1 or more; also how many may come at once."""
        self.misses_an_hour = misses_an_hour
        self._spent: dict[str, tuple[float, float]] = {}  # network → misses spent, at

    def allows(self, network: str, now_s: float) -> bool:
        """Tell whether one more guess may be tried."""
        return self._left(network, now_s) >= 1

    def spend(self, network: str, now_s: float) -> None:
        """Count a miss."""
        spent = self.misses_an_hour - self._left(network, now_s) + 1
        self._spent.pop(network, None)
        self._spent[network] = (spent, now_s)
        if len(self._spent) > MAX_NETWORKS:
            del self._spent[next(iter(self._spent))]

    def refund(self, network: str) -> None:
        """Take a miss back that turned out to be none."""
        spent, at = self._spent.get(network, (0.0, 0.0))
        if spent > 1:
            self._spent[network] = (spent - 1, at)
        else:
            self._spent.pop(network, None)

    def _left(self, network: str, now_s: float) -> float:
        known = self._spent.get(network)
        if known is None:
            return self.misses_an_hour
        spent, at = known
        regained = max(0.0, now_s - at) * self.misses_an_hour / REFILL_SECONDS
        return self.misses_an_hour - max(0.0, spent - regained)

"""Waiting that a test allows one look at a time."""

from __future__ import annotations

import asyncio


class Looks:
    """Hands out looks one at a time instead of waiting for seconds."""

    def __init__(self) -> None:
        self._asked = asyncio.Semaphore(0)
        self._given = asyncio.Semaphore(0)

    async def wait(self, _seconds: float) -> None:
        self._asked.release()
        await self._given.acquire()

    async def let(self, looks: int = 1) -> None:
        """Let the service look so many times; returns when it has finished the last."""
        for _ in range(looks):
            await self._asked.acquire()
            self._given.release()
        await self._asked.acquire()
        self._asked.release()

"""Work beside the event loop: its result, its failure, and that the loop goes on in the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from posthouse.services.aside import run_aside


async def test_the_result_comes_back_from_another_thread() -> None:
    assert await run_aside(threading.get_ident) != threading.get_ident()


async def test_a_failure_comes_back() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_aside(fail)


async def test_long_work_does_not_stop_the_loop() -> None:
    """The work ends only because the loop turns again."""
    turned = threading.Event()
    job = asyncio.create_task(run_aside(lambda: turned.wait(30)))
    await asyncio.sleep(0)  # the job begins, and stands in the way for a moment
    turned.set()
    assert await job

"""Due times: new rows always fall due behind what any reader has reached."""

from __future__ import annotations

from posthouse.storage.spool_clock import DueClock


class Still:
    """A clock that moves only by hand."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


def test_due_times_ascend_while_the_clock_stands_or_steps_back() -> None:
    """Each batch begins behind the one before."""
    clock = Still(1000)
    due = DueClock(clock, last_us=0)
    assert due.open_batch(3) == 1000
    due.close_batch()
    assert due.open_batch(1) == 1003
    due.close_batch()
    clock.now_us = 5
    assert due.open_batch(1) == 1004


def test_a_reader_stops_short_of_a_batch_under_way() -> None:
    """Rows that are not visible yet are not passed, whatever time it is."""
    clock = Still(1000)
    due = DueClock(clock, last_us=0)
    first = due.open_batch(5)
    clock.now_us = 2000
    assert due.limit(2000) == first - 1
    due.close_batch()
    assert due.limit(2000) == 2000


def test_a_batch_begins_behind_what_a_reader_may_have_read() -> None:
    """A deferred row that fell due just before new mail does not hide it."""
    clock = Still(1000)
    due = DueClock(clock, last_us=0)
    assert due.limit(1000) == 1000
    assert due.open_batch(1) > 1000
    due.close_batch()
    due.reached(5000)
    assert due.open_batch(1) > 5000


def test_what_is_visible_is_due_when_the_clock_steps_back() -> None:
    """Mail accepted before the step is not put off by it."""
    clock = Still(1000)
    due = DueClock(clock, last_us=0)
    stored = due.open_batch(1)
    due.close_batch()
    clock.now_us = 10
    assert due.limit(10) >= stored


def test_after_a_restart_stored_mail_is_due_wherever_the_clock_stands() -> None:
    """A clock set back over a restart puts nothing off."""
    due = DueClock(Still(10), last_us=0)
    due.start_behind(5000)
    assert due.limit(10) > 5000
    ahead = DueClock(Still(9000), last_us=0)
    ahead.start_behind(5000)
    assert ahead.limit(9000) == 9000

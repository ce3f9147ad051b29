"""`posthouse demo`: a complete rehearsal of an outage on 127.0.0.1.

Real parts throughout: `posthouse serve` as it is installed, a primary in a
process of its own that shares no code with it, mail from Python's smtplib. What
it tells is what happened; it ends with 0 only when every message was found at
the primary, octet by octet.
"""

from __future__ import annotations

import shutil
import signal
import smtplib
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from types import FrameType

import click

from posthouse.cli.demo_mail import (
    DOMAIN,
    NOBODY,
    ask_for,
    count_arrived,
    find_faults,
    send_messages,
)
from posthouse.cli.demo_stage import RehearsalError, Stage, wait_until

_BATCH = 60
_LOG_LINES_SHOWN = 20


class Teller:
    """Says what happens: plain lines, and on a terminal a count that moves and some colour."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._step = 0
        self._last = ""
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        click.secho(f"\n{self._step}. {text}", bold=True)

    def say(self, text: str, *, good: bool = False) -> None:
        """Tell one fact."""
        click.secho(f"   {text}", fg="green" if good else None)

    def count(self, text: str, queued: int) -> None:
        """Show the queue as it moves; only the last state stays on a terminal."""
        line = f"   {text:<34} queue: {queued:>4}"
        if self._live:
            click.echo(f"\r{line}", nl=False)
        elif line != self._last:
            click.echo(line)
        self._last = line

    def settle(self) -> None:
        """End a line of `count`."""
        if self._live:
            click.echo()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began


@click.command()
@click.option("--keep", is_flag=True, help="Keep the directory with configuration, spool and log.")
@click.option(
    "--messages",
    type=click.IntRange(_BATCH, 100_000),
    default=5 * _BATCH,
    show_default=True,
    help="How many arrive during the outage.",
)
def demo(keep: bool, messages: int) -> int:
    """Rehearse an outage on this machine, from first mail to last.

    A primary, this backup and a client, all on 127.0.0.1: the primary goes
    down, mail is taken, the backup is killed too, and everything arrives.
    Takes some 15 seconds, needs no privileges and leaves nothing behind.
    """
    signal.signal(signal.SIGTERM, _stop)
    directory = Path(tempfile.mkdtemp(prefix="posthouse-demo-"))
    stage: Stage | None = None
    try:
        stage = Stage(directory)
        rehearse(stage, Teller(), messages)
    except (RehearsalError, OSError, smtplib.SMTPException) as error:
        click.secho(f"\nThe rehearsal failed: {error}", fg="red", err=True)
        if stage is not None:
            _show_log(stage.log)
        return 1
    finally:
        if stage is not None:
            stage.close()
        if keep:
            click.echo(f"\nKept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


def rehearse(stage: Stage, teller: Teller, messages: int) -> None:
    """All steps in order. Raises RehearsalError, OSError or smtplib.SMTPException."""
    click.secho("An outage, rehearsed on 127.0.0.1", bold=True)
    click.echo(f"\nThe whole configuration of the backup ({stage.config.name}):\n")
    click.echo(textwrap.indent(stage.config.read_text(), "    "), nl=False)

    teller.title(f"The primary of {DOMAIN} is up, and so is the backup")
    stage.start_primary()
    stage.start_backup()
    early = 3
    send_messages(stage.backup_port, range(early))
    wait_until(lambda: count_arrived(stage.arrived) == early, "the first mail is home")
    _expect_queue(stage, 0)
    teller.say(f"{early} messages handed to the backup, and already home: nothing is queued")

    teller.title("Who does not exist is refused, so nothing ever has to be bounced")
    _expect_refusal(stage, teller)

    teller.title("The primary goes down; mail keeps coming")
    stage.stop_primary()
    sent = early
    while sent < early + messages:
        batch = range(sent, min(sent + _BATCH, early + messages))
        send_messages(stage.backup_port, batch)
        sent = batch.stop
        teller.count(f"{sent - early} accepted by the backup", _expect_queue(stage, sent - early))
    teller.settle()
    _expect_refusal(stage, teller)

    teller.title("Worse: the backup is killed with kill -9, and started again")
    stage.kill_backup()
    stage.start_backup()
    teller.say(f"queue: {_expect_queue(stage, messages):>4}: nothing is lost", good=True)

    teller.title("The primary returns; a probe notices it and the queue drains")
    stage.start_primary()
    began = time.monotonic()
    _watch_drain(stage, teller, sent)
    teller.say(f"all home {time.monotonic() - began:.1f} s after the primary came back", good=True)

    teller.title("Every message is compared with what the client sent")
    faults = find_faults(stage.arrived, sent)
    if faults:
        raise RehearsalError("\n  ".join([f"{len(faults)} faults:", *faults[:10]]))
    teller.say(
        f"{sent} of {sent} identical, octet by octet, below the Received line of the backup",
        good=True,
    )
    click.echo(
        f"\nDone in {teller.elapsed():.0f} s. Next: write a posthouse.toml like the one above, with"
        " your domain, then\n\n    posthouse check -c posthouse.toml\n\n"
        "README.md has the rest of the way."
    )


def _expect_queue(stage: Stage, wanted: int) -> int:
    """Wait until so many are queued; what is delivered or accepted shows within moments."""
    wait_until(lambda: stage.count_queue() == (wanted, 0), f"the queue is {wanted}")
    return wanted


def _expect_refusal(stage: Stage, teller: Teller) -> None:
    reply = ask_for(stage.backup_port, NOBODY)
    if not reply.startswith("550 5.1.1"):
        raise RehearsalError(f"RCPT TO:<{NOBODY}> was answered {reply}")
    teller.say(f"RCPT TO:<{NOBODY}> → {reply}")


def _watch_drain(stage: Stage, teller: Teller, wanted: int) -> None:
    def drained() -> bool:
        queued, held = stage.count_queue()
        if held:
            raise RehearsalError(f"{held} messages are held; `posthouse queue list` would say why")
        teller.count(f"{count_arrived(stage.arrived)} of {wanted} at the primary", queued)
        return queued == 0

    wait_until(drained, "the queue has drained")
    teller.settle()


def _show_log(log: Path) -> None:
    if log.exists():
        lines = log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES_SHOWN:]
        click.echo("\n".join(["The backup's log ended:", *lines]), err=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

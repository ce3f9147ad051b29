"""Runs a program for its lines of output: bounded in time, in memory and in what it may say.

The list of a program that failed, ended early or fell silent is no list: all of
these raise. What it says on standard error is kept for the operator.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Final

from posthouse.errors import SourceFailed

MAX_LINE_BYTES: Final = 64 << 10
MAX_OUTPUT_BYTES: Final = 8 << 30  # fifty million addresses with their values
TIMEOUT_SECONDS: Final = 900.0
SILENCE_SECONDS: Final = 120.0
_PIECE_BYTES: Final = 256 << 10
_SHOWN_BYTES: Final = 2000
_PATHS: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def read_program_lines(
    arguments: Sequence[str],
    *,
    timeout: float = TIMEOUT_SECONDS,
    silence: float = SILENCE_SECONDS,
) -> Iterator[str]:
    """Run a program and give its lines without LF; octets that are not UTF-8 as surrogates.

    timeout, silence: seconds for all of it and between two pieces of output.
    Raises SourceFailed. The program is ended with the iterator.
    """
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=_environment(),
                start_new_session=True,
                close_fds=True,
            )
        except OSError as error:
            raise SourceFailed(f"{arguments[0]} cannot be run: {error.strerror}") from error
        try:
            assert process.stdout is not None
            yield from _read(process.stdout, arguments[0], timeout, silence)
            code = process.wait(timeout=silence)
        except subprocess.TimeoutExpired:
            raise SourceFailed(f"{arguments[0]} closed its output and does not end") from None
        finally:
            _end(process)
        if code != 0:
            raise SourceFailed(f"{arguments[0]} failed ({code}): {_say(complaints)}")


def _environment() -> dict[str, str]:
    """Nothing of ours but where programs are: no library is preloaded, no secret handed on."""
    found = [path for path in os.environ.get("PATH", "").split(":") if path.startswith("/")]
    return {"PATH": ":".join(dict.fromkeys((*found, *_PATHS))), "LC_ALL": "C.UTF-8"}


def _read(stream: IO[bytes], name: str, timeout: float, silence: float) -> Iterator[str]:
    descriptor = stream.fileno()
    deadline = time.monotonic() + timeout
    tail, total = b"", 0
    while True:
        patience = min(silence, deadline - time.monotonic())
        if patience <= 0 or not select.select([descriptor], [], [], patience)[0]:
            raise SourceFailed(f"{name} took too long: not all was read")
        piece = os.read(descriptor, _PIECE_BYTES)
        if not piece:
            break
        total += len(piece)
        head, line_feed, rest = piece.rpartition(b"\n")
        if line_feed:
            yield from (tail + head).decode("utf-8", "surrogateescape").split("\n")
            tail = rest
        else:
            tail += rest
        if len(tail) > MAX_LINE_BYTES or total > MAX_OUTPUT_BYTES:
            raise SourceFailed(f"{name} said more than can be taken")
    if tail:
        yield tail.decode("utf-8", "surrogateescape")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started; nothing is left of it afterwards."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def _say(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    text = complaints.read(_SHOWN_BYTES).decode("utf-8", "replace")
    said = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(c if c.isprintable() else "?" for c in said) or "it did not say why"

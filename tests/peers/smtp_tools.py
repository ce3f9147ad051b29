"""Small real clients and servers: smtp-source, smtp-sink, swaks, openssl s_client.

Every run is bounded in time; what the program said comes back as values.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from peers.processes import PeerFailed, Running, find_program, free_port

# --------------------------------------------------------------------------- smtp-source


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRun:
    """One run of smtp-source. complaint: what it printed, "" when every message was taken."""

    messages: int
    seconds: float
    complaint: str

    @property
    def ok(self) -> bool:
        """Every message got its 250."""
        return not self.complaint

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds


def source_arguments(
    port: int,
    *,
    messages: int,
    sessions: int = 1,
    payload_bytes: int = 1024,
    reuse: bool = False,
    recipient: str = "user@example.com",
    sender: str = "sender@elsewhere.example",
    numbered: bool = False,
    file: Path | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """The command line of one smtp-source run.

    reuse: many messages a connection (-d). numbered: prepend a fresh number to
    each recipient, as "1user@…" (-N). file: send this header and body instead.
    """
    command = [find_program("smtp-source", "postfix"), "-4", "-s", str(sessions)]
    command += [
        "-m",
        str(messages),
        "-f",
        sender,
        "-t",
        recipient,
        "-M",
        "client.elsewhere.example",
    ]
    command += ["-F", str(file)] if file is not None else ["-l", str(payload_bytes)]
    command += ["-d"] if reuse else []
    command += ["-N"] if numbered else []
    return [*command, *options, f"127.0.0.1:{port}"]


def smtp_source(
    port: int,
    *,
    messages: int,
    sessions: int = 1,
    payload_bytes: int = 1024,
    reuse: bool = False,
    recipient: str = "user@example.com",
    sender: str = "sender@elsewhere.example",
    numbered: bool = False,
    file: Path | None = None,
    options: Sequence[str] = (),
    seconds: float = 120,
) -> SourceRun:
    """Send messages to 127.0.0.1:`port`. Raises PeerFailed when it takes longer than `seconds`.

    A refusal is no exception: smtp-source stops at the first one (unless
    options has "-A") and `complaint` tells it.
    """
    command = source_arguments(
        port,
        messages=messages,
        sessions=sessions,
        payload_bytes=payload_bytes,
        reuse=reuse,
        recipient=recipient,
        sender=sender,
        numbered=numbered,
        file=file,
        options=options,
    )
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"smtp-source was not done after {seconds:g} s") from error
    took = time.perf_counter() - began
    complaint = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
    if done.returncode and not complaint:
        complaint = f"exit code {done.returncode}"
    return SourceRun(messages=messages, seconds=took, complaint=complaint)


# --------------------------------------------------------------------------- smtp-sink


class SmtpSink:
    """A server that takes everything and throws it away (or keeps it, with `keep_in`).

    options: e.g. ("-f", "RCPT") answers RCPT with a 5xx, "-r" with a 4xx,
    "-q" drops the connection; `man smtp-sink` has the list.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        backlog: int = 1024,
        keep_in: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.port = free_port() if port is None else port
        self._counters = directory / f"smtp-sink-{self.port}.counters"
        self._command = [find_program("smtp-sink", "postfix"), "-4", "-c", "-m", "2000"]
        if os.geteuid() == 0:
            # Only root may (and must) name a user to become.
            self._command += ["-u", "root" if keep_in is not None else "nobody"]
        if keep_in is not None:
            keep_in.mkdir(parents=True, exist_ok=True)
            self._command += ["-d", f"{keep_in}/%M."]
        self._host = host
        self._command += [*options, f"{host}:{self.port}", str(backlog)]
        self._keep_in = keep_in
        self._running: Running | None = None

    def start(self) -> None:
        """Start (again); counters begin at zero. Returns when connections are taken."""
        self._counters.write_bytes(b"")
        self._running = Running(self._command, output=self._counters)
        self._running.wait_answering(self.port, host=self._host)

    def stop(self) -> None:
        """End it; the port is closed afterwards. Harmless when repeated."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    @property
    def messages(self) -> int:
        """How many messages have been received since `start`.

        Read from the end of the file its running counter goes to: costs the
        sink one small write a message, and us nothing while we do not look.
        """
        with open(self._counters, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 200))
            found = re.findall(rb"mesg=(\d+)\r", file.read())
        return int(found[-1]) if found else 0

    def wait_messages(self, count: int, *, seconds: float = 60) -> None:
        """Wait until `count` messages have come. Raises PeerFailed when they did not in time."""
        deadline = time.monotonic() + seconds
        while (seen := self.messages) < count:
            if time.monotonic() > deadline:
                raise PeerFailed(f"smtp-sink got {seen} of {count} messages in {seconds:g} s")
            time.sleep(0.005)

    def kept(self) -> list[bytes]:
        """The dumps of messages that ended, oldest first; smtp-sink's own X- lines included."""
        if self._keep_in is None:
            return []
        return [path.read_bytes() for path in sorted(self._keep_in.iterdir())]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


# --------------------------------------------------------------------------- swaks


@dataclass(frozen=True, slots=True, kw_only=True)
class SwaksRun:
    """One run of swaks: exit code 0 = accepted; the transcript as it printed it."""

    exit_code: int
    transcript: str

    @property
    def ok(self) -> bool:
        """The message was accepted."""
        return self.exit_code == 0

    def replies(self) -> list[str]:
        """Lines the server said, in order, in clear ("<-", "<**") and under TLS ("<~", "<~*")."""
        return re.findall(r"^<(?:-|~|\*\*|~\*)\s+(.*)$", self.transcript, re.MULTILINE)


def swaks(port: int, *arguments: str, seconds: float = 60) -> SwaksRun:
    """Run swaks against 127.0.0.1:`port` with more arguments, e.g. "--to", "user@example.com"."""
    command = [find_program("swaks", "swaks"), "--server", "127.0.0.1", "--port", str(port)]
    command += ["--timeout", "30s", *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"swaks was not done after {seconds:g} s") from error
    return SwaksRun(exit_code=done.returncode, transcript=done.stdout.decode("utf-8", "replace"))


# --------------------------------------------------------------------------- openssl s_client


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsRun:
    """One `openssl s_client -starttls smtp` session.

    protocol, cipher: as negotiated, "" when the handshake failed; verify: the
    "Verify return code" text; output: everything it printed, the dialogue included.
    """

    protocol: str
    cipher: str
    verify: str
    output: str
    exit_code: int


def starttls_dialogue(
    port: int, lines: Sequence[str], *, options: Sequence[str] = (), seconds: float = 30
) -> TlsRun:
    """STARTTLS by openssl, then send `lines` (each ended by CRLF), QUIT, and read to the end."""
    command = [find_program("openssl", "openssl"), "s_client", "-starttls", "smtp", "-crlf"]
    # Without -nocommands a line that begins with R or Q ("RCPT", "QUIT") is an order to openssl.
    command += ["-nocommands", "-ign_eof", "-connect", f"127.0.0.1:{port}", *options]
    sent = "".join(f"{line}\n" for line in (*lines, "QUIT"))
    try:
        done = subprocess.run(
            command,
            input=sent.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"openssl s_client was not done after {seconds:g} s") from error
    output = done.stdout.decode("utf-8", "replace")
    negotiated = re.search(r"^New, (\S+), Cipher is (\S+)", output, re.MULTILINE)
    verify = re.search(r"^\s*Verif(?:y return code|ication): (.*)$", output, re.MULTILINE)
    good = negotiated is not None and negotiated[2] != "(NONE)"
    return TlsRun(
        protocol=negotiated[1] if negotiated is not None and good else "",
        cipher=negotiated[2] if negotiated is not None and good else "",
        verify=verify[1] if verify is not None else "",
        output=output,
        exit_code=done.returncode,
    )

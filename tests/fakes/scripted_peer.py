"""An SMTP server on a loopback socket that does what a script says.

It is a peer, not a mock: real sockets, real TLS, its own little parser. Every
stage can be answered as wished, stalled, dropped or spoiled::

    async with ScriptedPeer({"RCPT:bad@example.com": "550 5.1.1 no", ".": DROP}) as peer:
        ...  # connect to peer.host, peer.port
        await peer.wait_messages(1)

Stages: "connect", "EHLO", "HELO", "STARTTLS", "MAIL", "RCPT", "DATA", "." (end of
data, whole message read), "AUTH" (only under TLS and once, else 5xx), "BDAT" (LAST chunk read), "RSET", "NOOP", "QUIT";
"RCPT:<address>" and "MAIL:<address>" go before "RCPT" and "MAIL".
An answer is one of

- a reply without its last CRLF ("\\r\\n" inside makes it multi-line); bytes go as they are;
- `DROP` close; `RESET` close with RST; `STALL` say nothing more on this connection;
- `DRIP(octets)` send them for ever, as long as somebody reads;
- a tuple of answers: one each time the stage comes up, the last one repeats.

The default answers accept everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final


class _Act:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


DROP: Final = _Act("DROP")
RESET: Final = _Act("RESET")
STALL: Final = _Act("STALL")


@dataclass(frozen=True)
class DRIP:
    """Send `octets` again and again."""

    octets: bytes


OneAnswer = str | bytes | _Act | DRIP
Answer = OneAnswer | tuple[OneAnswer, ...]

DEFAULT_EXTENSIONS: Final = ("PIPELINING", "SIZE 52428800", "8BITMIME", "ENHANCEDSTATUSCODES")
_DEFAULTS: Final[dict[str, str]] = {
    "connect": "220 peer.example ESMTP",
    "HELO": "250 peer.example",
    "STARTTLS": "220 2.0.0 go ahead",
    "AUTH": "235 2.7.0 ok",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go on",
    ".": "250 2.0.0 taken",
    "BDAT": "250 2.0.0 taken",
    "RSET": "250 2.0.0 ok",
    "NOOP": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
}
_PATH: Final = re.compile(r"^(?:MAIL FROM|RCPT TO):<(.*?)>(?: (.*))?$", re.IGNORECASE)


@dataclass(frozen=True)
class ReceivedMail:
    """A message this peer took (its final reply was 2xx)."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    mail_parameters: str
    rcpt_parameters: tuple[str, ...]
    by: str  # "DATA" or "BDAT"
    tls: bool


class _Ended(Exception):
    """This connection's script is over."""


@dataclass
class _Transaction:
    sender: str | None = None
    mail_parameters: str = ""
    recipients: list[str] = field(default_factory=list)
    rcpt_parameters: list[str] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)


class ScriptedPeer:
    """Accepts connections while open; what it saw is in `commands` and `messages`.

    answers and extensions may be changed at any time. strict: answer 503 to commands
    out of order, 554 to DATA without recipients, as real servers do.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer] | None = None,
        *,
        extensions: Sequence[str] = DEFAULT_EXTENSIONS,
        tls: ssl.SSLContext | None = None,
        strict: bool = True,
    ) -> None:
        self.answers: dict[str, Answer] = dict(answers or {})
        self.extensions = tuple(extensions)
        self.tls = tls
        self.strict = strict
        self.host = "127.0.0.1"
        self.port = 0
        self.commands: list[str] = []  # of all connections, as they came
        self.messages: list[ReceivedMail] = []
        self.connections = 0
        self.octets_read = 0
        self._uses: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> ScriptedPeer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the same port as before when it was stopped."""
        self._server = await asyncio.start_server(
            self._connected, self.host, self.port, limit=1 << 20, backlog=200
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def wait_messages(self, count: int) -> list[ReceivedMail]:
        """Wait until at least `count` messages were taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.messages) >= count)
        return self.messages

    async def wait_command(self, prefix: str, count: int = 1) -> None:
        """Wait until `count` commands that begin with `prefix` came."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: sum(c.startswith(prefix) for c in self.commands) >= count
            )

    async def wait_connections(self, count: int) -> None:
        """Wait until `count` connections were made."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.connections >= count)

    def answer_to(self, *stages: str) -> OneAnswer:
        """The next answer to the first of `stages` that is scripted."""
        for stage in stages:
            answer = self.answers.get(stage)
            if answer is None:
                continue
            if not isinstance(answer, tuple):
                return answer
            used = self._uses.get(stage, 0)
            self._uses[stage] = used + 1
            return answer[min(used, len(answer) - 1)]
        return _DEFAULTS[stages[-1]]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.note_change(connection=True)
            await _Conversation(self, reader, writer).run()
        except (_Ended, OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except asyncio.CancelledError:
            pass  # our own stop()
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            with contextlib.suppress(OSError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()

    async def note_change(
        self,
        *,
        command: str | None = None,
        message: ReceivedMail | None = None,
        connection: bool = False,
    ) -> None:
        """Record what was seen and wake who waits for it."""
        async with self._changed:
            if command is not None:
                self.commands.append(command)
            if message is not None:
                self.messages.append(message)
            self.connections += connection
            self._changed.notify_all()


class _Conversation:
    """One connection."""

    def __init__(
        self, peer: ScriptedPeer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.peer = peer
        self.reader = reader
        self.writer = writer
        self.secure = False
        self.mail = _Transaction()
        self.authenticated = False

    async def run(self) -> None:
        await self.say(self.peer.answer_to("connect"))
        while True:
            line = (await self.reader.readuntil(b"\n")).rstrip(b"\r\n").decode("utf-8", "replace")
            await self.peer.note_change(command=line)
            verb = line.split(" ", 1)[0].upper()
            match verb:
                case "EHLO":
                    await self.ehlo()
                case "MAIL" | "RCPT":
                    await self.path(verb, line)
                case "DATA":
                    await self.data()
                case "BDAT":
                    await self.bdat(line)
                case "STARTTLS":
                    await self.starttls()
                case "AUTH":
                    await self.auth()
                case "*":
                    await self.say("501 5.7.0 called off")
                case "RSET" | "HELO" | "NOOP" | "QUIT":
                    self.mail = _Transaction()
                    await self.say(self.peer.answer_to(verb))
                    if verb == "QUIT":
                        raise _Ended
                case _:
                    await self.say("500 5.5.2 what?")

    async def say(self, answer: OneAnswer) -> bool:
        """Give an answer; True when it was a 2xx or 3xx reply."""
        if answer is STALL:
            while await self.reader.read(65536):  # reads on, says nothing
                pass
            raise _Ended
        if answer is RESET:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise _Ended
        if answer is DROP:
            self.writer.close()
            raise _Ended
        if isinstance(answer, DRIP):
            while True:
                self.writer.write(answer.octets * 100)
                await self.writer.drain()
                await asyncio.sleep(0)  # drain alone lets nobody else run
        data = answer if isinstance(answer, bytes) else f"{answer}\r\n".encode()
        self.writer.write(data)
        await self.writer.drain()
        return data[:1] in (b"2", b"3")

    async def ehlo(self) -> None:
        self.mail = _Transaction()
        if "EHLO" in self.peer.answers:
            await self.say(self.peer.answer_to("EHLO"))
            return
        lines = ["peer.example", *self.peer.extensions]
        if self.peer.tls is not None and not self.secure:
            lines.append("STARTTLS")
        last = len(lines) - 1
        await self.say(
            "\r\n".join(f"250{'-' if i < last else ' '}{t}" for i, t in enumerate(lines))
        )

    async def auth(self) -> None:
        if not self.secure:
            await self.say("538 5.7.11 not in clear")
        elif self.authenticated or self.mail.sender is not None:
            await self.say("503 5.5.1 bad sequence of commands")
        else:
            answer = self.peer.answer_to("AUTH")
            await self.say(answer)
            self.authenticated = isinstance(answer, str) and answer.startswith("235")

    async def path(self, verb: str, line: str) -> None:
        found = _PATH.match(line)
        if found is None:
            await self.say("501 5.5.4 syntax")
            return
        address, parameters = found[1], found[2] or ""
        out_of_order = (self.mail.sender is not None) == (verb == "MAIL")
        if self.peer.strict and out_of_order:
            await self.say("503 5.5.1 bad sequence of commands")
        elif await self.say(self.peer.answer_to(f"{verb}:{address}", verb)):
            if verb == "MAIL":
                self.mail = _Transaction(sender=address, mail_parameters=parameters)
            else:
                self.mail.recipients.append(address)
                self.mail.rcpt_parameters.append(parameters)

    async def data(self) -> None:
        if self.peer.strict and not self.mail.recipients:
            await self.say("554 5.5.1 no valid recipients")
            return
        if not await self.say(self.peer.answer_to("DATA")):
            return
        lines: list[bytes] = []
        while (line := await self.reader.readuntil(b"\r\n")) != b".\r\n":
            self.peer.octets_read += len(line)
            lines.append(line[1:] if line.startswith(b".") else line)
        await self.end_of_message(".", b"".join(lines), "DATA")

    async def bdat(self, line: str) -> None:
        words = line.upper().split()
        chunk = await self.reader.readexactly(int(words[1]))
        self.peer.octets_read += len(chunk)
        if self.peer.strict and not self.mail.recipients:
            await self.say("503 5.5.1 no valid recipients")
            return
        self.mail.chunks.append(chunk)
        if words[-1] == "LAST":
            await self.end_of_message("BDAT", b"".join(self.mail.chunks), "BDAT")
        else:
            await self.say("250 2.0.0 chunk taken")

    async def end_of_message(self, stage: str, content: bytes, by: str) -> None:
        mail, self.mail = self.mail, _Transaction()
        answer = self.peer.answer_to(stage)
        taken = ReceivedMail(
            sender=mail.sender or "",
            recipients=tuple(mail.recipients),
            content=content,
            mail_parameters=mail.mail_parameters,
            rcpt_parameters=tuple(mail.rcpt_parameters),
            by=by,
            tls=self.secure,
        )
        positive = isinstance(answer, str) and answer.startswith("2")
        await self.peer.note_change(command=".", message=taken if positive else None)
        await self.say(answer)

    async def starttls(self) -> None:
        answer = self.peer.answer_to("STARTTLS")
        if self.peer.tls is None and "STARTTLS" not in self.peer.answers:
            await self.say("502 5.5.1 not here")
        elif await self.say(answer) and self.peer.tls is not None:
            await self.writer.start_tls(self.peer.tls)
            self.secure = True
            self.mail = _Transaction()

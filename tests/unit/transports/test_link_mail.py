"""Handing over the one-time link: to a submission host and to a sendmail program."""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peers.processes import free_port
from posthouse.errors import TellingFailed
from posthouse.transports.link_mail import LinkMailer, SendmailProgram, Submission

NOW_S = 1_795_900_000.0


def mailer(way: Submission | SendmailProgram) -> LinkMailer:
    return LinkMailer(
        way, sender="postmaster@example.com", hostname="mail.example.com", now_s=lambda: NOW_S
    )


class Host:
    """A mail server that takes what it is given; `refuse` names a verb it does not like."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.commands: list[str] = []
        self.message = b""
        self.port = 0

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"220 mail.example.com ESMTP\r\n")
            while line := (await reader.readline()).decode().strip():
                self.commands.append(line)
                verb = line.split(" ")[0].upper()
                if verb == self.refuse:
                    writer.write(b"550 5.7.1 no\r\n")
                elif verb == "EHLO":
                    writer.write(b"250-mail.example.com\r\n250 SMTPUTF8\r\n")
                elif verb == "DATA":
                    writer.write(b"354 go on\r\n")
                    self.message = await reader.readuntil(b"\r\n.\r\n")
                    writer.write(b"250 2.0.0 taken\r\n")
                elif verb == "QUIT":
                    writer.write(b"221 bye\r\n")
                    break
                else:
                    writer.write(b"250 2.0.0 ok\r\n")
        finally:
            writer.close()


@asynccontextmanager
async def serve(host: Host) -> AsyncIterator[Submission]:
    server = await asyncio.start_server(host.greet, "127.0.0.1", 0)
    async with server:
        yield Submission(host="127.0.0.1", port=server.sockets[0].getsockname()[1])


async def test_a_submission_host_gets_the_message() -> None:
    """With the null reverse-path, as a machine's mail, its text as it was."""
    host = Host()
    async with serve(host) as way:
        await mailer(way).send("alice@example.com", "Your link", "Open this:\n\n  https://x/y\n")
    assert "mail FROM:<>" in host.commands
    assert "rcpt TO:<alice@example.com>" in host.commands
    assert host.commands[0] == "ehlo mail.example.com"
    message = email.message_from_bytes(host.message[:-3], policy=email.policy.default)
    assert message["From"] == "postmaster@example.com"
    assert message["To"] == "alice@example.com"
    assert message["Subject"] == "Your link"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Date"] == "Sat, 28 Nov 2026 21:06:40 -0000"
    assert message["Message-ID"].endswith("@mail.example.com>")
    body = message.get_body()
    assert body is not None
    assert body.get_content().replace("\r\n", "\n") == "Open this:\n\n  https://x/y\n"


async def test_addresses_of_other_scripts() -> None:
    """They go out with SMTPUTF8."""
    host = Host()
    async with serve(host) as way:
        await mailer(way).send("zoë@example.com", "Your link", "text\n")
    assert any(
        "SMTPUTF8" in command.upper() for command in host.commands if "MAIL" in command.upper()
    )
    assert "zoë@example.com".encode() in host.message


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "EHLO"])
async def test_a_refusal_is_a_failure(verb: str) -> None:
    """Wherever it comes."""
    async with serve(Host(refuse=verb)) as way:
        with pytest.raises(TellingFailed):
            await mailer(way).send("alice@example.com", "Your link", "text\n")


async def test_nobody_there() -> None:
    """A closed port and a missing program are failures too."""
    with pytest.raises(TellingFailed):
        await mailer(Submission(host="127.0.0.1", port=free_port())).send("a@b.example", "s", "t")
    with pytest.raises(TellingFailed):
        await mailer(SendmailProgram(path="/nonexistent/sendmail")).send("a@b.example", "s", "t")


def write_program(folder: Path, body: str) -> SendmailProgram:
    path = folder / "sendmail"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return SendmailProgram(path=str(path))


async def test_a_sendmail_program(tmp_path: Path) -> None:
    """It gets the message on its input, and the address as an argument that is no option."""
    program = write_program(tmp_path, f'echo "$@" > {tmp_path}/args; cat > {tmp_path}/message')
    await mailer(program).send("-oQ/tmp@example.com", "Your link", "text\n")
    assert (tmp_path / "args").read_text() == "-i -f <> -- -oQ/tmp@example.com\n"
    message = (tmp_path / "message").read_bytes()
    assert b"\r" not in message
    assert b"Subject: Your link\n" in message


async def test_a_program_that_fails(tmp_path: Path) -> None:
    """Its last words are in the failure."""
    program = write_program(tmp_path, "cat > /dev/null; echo 'queue is full' >&2; exit 75")
    with pytest.raises(TellingFailed, match="75: queue is full"):
        await mailer(program).send("alice@example.com", "Your link", "text\n")


@pytest.mark.parametrize("address", ["a\r\nBcc: x@y.example", "a\nb@example.com"])
async def test_nothing_smuggles_headers(tmp_path: Path, address: str) -> None:
    """An address with a line end is refused before anything is sent."""
    program = write_program(tmp_path, f"cat > {tmp_path}/message")
    with pytest.raises(TellingFailed):
        await mailer(program).send(address, "Your link", "text\n")
    assert not (tmp_path / "message").exists()

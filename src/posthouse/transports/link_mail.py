"""Hands one-time links and alerts to a mail server: a submission host, or the sendmail program.

The message is ours to the last octet, plain text, marked as made by a machine
(RFC 3834), with the null reverse-path: nobody answers it. Bounded in time.
"""

from __future__ import annotations

import asyncio
import email.policy
import email.utils
import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from typing import Final

import msgspec

from posthouse.errors import TellingFailed
from posthouse.log_sink import clean

SEND_SECONDS: Final = 30.0


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A host that takes our mail without a password, as the mail server beside us does."""

    host: str
    port: int


class SendmailProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program with sendmail's options (Postfix's, Exim's)."""

    path: str


class LinkMailer:
    """See `posthouse.ports_rights.LinkMail`."""

    def __init__(
        self,
        way: Submission | SendmailProgram,
        *,
        sender: str,
        hostname: str,
        now_s: Callable[[], float],
    ) -> None:
        """sender: of the From field; hostname: for EHLO and Message-ID."""
        self._way = way
        self._sender = sender
        self._hostname = hostname
        self._now_s = now_s

    async def send(self, recipient: str, subject: str, text: str) -> None:
        """Hand over a message of plain text. Raises TellingFailed."""
        try:
            message = self._write(recipient, subject, text)
            async with asyncio.timeout(2 * SEND_SECONDS):
                if isinstance(self._way, SendmailProgram):
                    await self._run(self._way, recipient, message)
                else:
                    await asyncio.to_thread(self._submit, self._way, recipient, message)
        except (OSError, TimeoutError, smtplib.SMTPException, ValueError) as error:
            raise TellingFailed(f"{recipient}: not sent: {clean(str(error))}") from error

    def _write(self, recipient: str, subject: str, text: str) -> EmailMessage:
        policy = email.policy.SMTP if recipient.isascii() else email.policy.SMTPUTF8
        message = EmailMessage(policy=policy)
        message["From"] = self._sender
        message["To"] = recipient
        message["Subject"] = subject
        message["Date"] = email.utils.formatdate(self._now_s())
        message["Message-ID"] = email.utils.make_msgid(domain=self._hostname)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text)
        return message

    def _submit(self, way: Submission, recipient: str, message: EmailMessage) -> None:
        with smtplib.SMTP(
            way.host, way.port, local_hostname=self._hostname, timeout=SEND_SECONDS
        ) as client:
            code, said = client.ehlo()
            if code != 250:
                raise smtplib.SMTPResponseException(code, said)
            if client.has_extn("starttls"):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False  # opportunistic, as between mail servers
                context.verify_mode = ssl.CERT_NONE
                client.starttls(context=context)
                client.ehlo()
            client.send_message(message, from_addr="", to_addrs=[recipient])

    async def _run(self, way: SendmailProgram, recipient: str, message: EmailMessage) -> None:
        process = await asyncio.create_subprocess_exec(
            way.path,
            "-i",
            "-f",
            "<>",
            "--",
            recipient,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            # A program reads lines as this system ends them.
            octets = message.as_bytes().replace(b"\r\n", b"\n")
            _, said = await process.communicate(octets)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            words = said.decode("utf-8", "replace").strip()[-300:]
            raise OSError(f"{way.path} ended with {process.returncode}: {words}")

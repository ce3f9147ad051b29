"""Answers Postfix's SASL questions for agreement-IDs (`smtpd_sasl_type = dovecot`).

    smtpd_sasl_path = posthouse/auth        # see docs/postfix-kit.md

Promises: a one-time password is no good here (PROTOCOL.md §3); a book that
cannot be read is never called a wrong password, the connection is closed and
Postfix says 454; who guesses learns nothing but "failed".
"""

from __future__ import annotations

import itertools
import os
import secrets
from typing import Final

from posthouse import observe
from posthouse.interfaces.local_door import Line, LocalDoor, Place
from posthouse.ports_postfix import AgreementVerifier, AuthFinding
from posthouse.proto.dovecot_auth import Attempt, AuthServer

_EXPIRED: Final = "the agreement must be completed first"


class DovecotAuthDoor:
    """The server. `verifier` judges."""

    def __init__(self, verifier: AgreementVerifier) -> None:
        self._verifier = verifier
        self._numbers = itertools.count(1)
        self._door = LocalDoor("auth", self._serve)

    async def open(self, place: Place) -> int:
        """See `LocalDoor.open`."""
        return await self._door.open(place)

    async def close(self) -> None:
        """Stop listening, cut what is open."""
        await self._door.close()

    async def _serve(self, line: Line) -> None:
        server = AuthServer(
            process_id=os.getpid(),
            connection_id=next(self._numbers),
            cookie=secrets.token_hex(16),
        )
        await line.write(server.take_output())
        while data := await line.read():
            for attempt in server.feed(data):
                if not await self._judge(server, attempt):
                    await line.write(server.take_output())
                    return
            await line.write(server.take_output())
            if server.broken:
                observe.note("auth", f"a client of the auth socket was cut off: {server.broken}")
                return

    async def _judge(self, server: AuthServer, attempt: Attempt) -> bool:
        """Answer one attempt; False when there is no answer to give."""
        match await self._verifier.check(attempt.user, attempt.password):
            case AuthFinding.GOOD:
                server.accept(attempt.request_id)
                return True
            case AuthFinding.EXPIRED:
                server.refuse(attempt.request_id, _EXPIRED, "pass_expired")
                why = "its password is only good for completion"
            case AuthFinding.BAD:
                server.refuse(attempt.request_id)
                why = "unknown, ended, or a wrong password"
            case AuthFinding.TEMPORARY:
                observe.note("auth", "the book of agreements cannot be read: AUTH is put off")
                return False
        observe.note(
            "auth",
            f"AUTH failed for {attempt.user!r} from {attempt.remote or 'unknown'}: {why}",
            agreement=attempt.user,
            client=attempt.remote,
        )
        return True

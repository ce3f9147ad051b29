"""Answers Postfix's policy questions: mail under an agreement skips greylisting and SPF.

    check_policy_service unix:posthouse/policy        # see docs/postfix-kit.md

Promise: our own trouble changes nothing for anybody, it is answered DUNNO.
What is decided, and why: `posthouse.domain.postfix_policy`.
"""

from __future__ import annotations

from collections.abc import Mapping

from posthouse import observe
from posthouse.domain.postfix_policy import (
    DUNNO,
    PERMIT,
    Claim,
    decide_action,
    find_claim,
    split_submitter,
)
from posthouse.errors import StorageError
from posthouse.interfaces.local_door import Line, LocalDoor, Place
from posthouse.ports_postfix import AgreementBacking
from posthouse.proto.postfix_policy import PolicyReader, format_answer


class PostfixPolicyDoor:
    """The server. `backing` knows the agreements in force."""

    def __init__(self, backing: AgreementBacking) -> None:
        self._backing = backing
        self._door = LocalDoor("policy", self._serve)

    async def open(self, place: Place) -> int:
        """See `LocalDoor.open`."""
        return await self._door.open(place)

    async def close(self) -> None:
        """Stop listening, cut what is open."""
        await self._door.close()

    async def _serve(self, line: Line) -> None:
        reader = PolicyReader()
        while data := await line.read():
            for question in reader.feed(data):
                await line.write(format_answer(await self._answer(question)))
            if reader.broken:
                observe.note(
                    "policy", f"a client of the policy socket was cut off: {reader.broken}"
                )
                return

    async def _answer(self, question: Mapping[str, str]) -> str:
        claim = find_claim(question)
        if claim is None:
            return DUNNO
        try:
            action = await self._judge(claim)
        except StorageError as error:
            observe.trouble("policy", "the book of agreements cannot be read", error)
            return DUNNO
        if action == PERMIT:
            observe.note(
                "policy",
                f"{claim.recipient}: under agreement {claim.submitter or claim.agreement_id}",
                agreement=claim.agreement_id,
                client=question.get("client_address", ""),
            )
        return action

    async def _judge(self, claim: Claim) -> str:
        backing = await self._backing.find_backing(claim.agreement_id)
        if backing is None:
            return DUNNO
        mailbox = backing.mailbox
        if claim.submitter:
            agreement_id, _ = split_submitter(claim.submitter)
            other = await self._backing.find_backing(agreement_id)
            if other is None or other.forwarder_id != backing.forwarder_id:
                return DUNNO
            mailbox = other.mailbox
        return decide_action(
            claim,
            forwarder_id=backing.forwarder_id,
            mailbox=mailbox,
            domains=backing.domains,
        )

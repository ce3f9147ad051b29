"""Requests about agreements to the other side of a pairing: values to octets and back.

What the protocol calls a refusal comes back as one; no usable answer, ill-formed
ones included, is a PeerFailure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from posthouse.errors import DocumentError, PeerFailure
from posthouse.mail.recipes import (
    AgreementRequest,
    Completion,
    Denial,
    PolicyRequest,
    PolicySettings,
    RecipeResult,
    Refusal,
)
from posthouse.ports_https import Peer, PeerResponse
from posthouse.proto import agreement_wire as wire

_DENIALS: Final = {denial.value: denial for denial in Denial}

T = TypeVar("T")


class PeerGranter:
    """`ports_agreements.GranterCalls` over one peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def request(self, document: AgreementRequest) -> Sequence[RecipeResult] | Refusal:
        """Ask for agreements."""
        answer = await _post(self._peer, "v1/agreements", wire.encode_request(document))
        if isinstance(answer, Refusal):
            return answer
        return _read(self._peer, lambda body: wire.decode_results(body, document), answer)

    async def complete(self, url: str, document: Completion) -> Refusal | None:
        """Complete; None: done."""
        answer = await _post(self._peer, url, wire.encode_completion(document))
        if isinstance(answer, Refusal):
            return answer
        if answer.status != 204:
            raise PeerFailure(
                f"{self._peer.party}: completion answered {answer.status} instead of 204",
                stage="protocol",
                status=answer.status,
            )
        return None


class PeerForwarders:
    """`ports_agreements.PolicyCalls` over the peers of all forwarders, by party."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self._peers = peers

    async def negotiate(
        self, party: str, url: str, document: PolicyRequest
    ) -> PolicySettings | Refusal:
        """Get or set at one forwarder."""
        peer = self._peers.get(party)
        if peer is None:
            raise PeerFailure(f"{party} is not paired any more", stage="url")
        answer = await _post(peer, url, wire.encode_policy(document))
        if isinstance(answer, Refusal):
            return answer
        return _read(peer, wire.decode_settings, answer)


async def _post(peer: Peer, path: str, document: bytes) -> PeerResponse | Refusal:
    try:
        return await peer.post(path, document)
    except PeerFailure as error:
        denial = _DENIALS.get(error.status) if error.stage == "status" else None
        if error.stage == "too_large" and not error.status:  # ours: more than a request may have
            denial = Denial.TOO_LARGE
        if denial is None:
            raise
        text = ": ".join(filter(None, (error.title, error.problem))) or f"HTTP {error.status}"
        return Refusal(denial, text, error.retry_after_seconds)


def _read(peer: Peer, decode: Callable[[bytes], T], answer: PeerResponse) -> T:
    if answer.status != 200 or answer.media_type != "application/json":
        raise PeerFailure(
            f"{peer.party}: answered {answer.status} {answer.media_type or 'without a type'}",
            stage="protocol",
            status=answer.status,
        )
    try:
        return decode(answer.body)
    except DocumentError as error:
        raise PeerFailure(
            f"{peer.party}: its answer is malformed: {error.detail}", stage="protocol"
        ) from error

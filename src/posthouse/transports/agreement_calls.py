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
from posthouse.proto.base_url import lies_under

POLICY_TAIL: Final = "v1/policy"
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
        answer = await _post(peer, follow_move(peer.base_url, url), wire.encode_policy(document))
        if isinstance(answer, Refusal):
            return answer
        return _read(peer, wire.decode_settings, answer)


def follow_move(base_url: str, url: str) -> str:
    """Where a forwarder is called that gave us `url`, and may have moved to `base_url` since.

    Outside its base nobody is called; a URL that ends as the protocol has it is looked for
    under the new one. Spec: PROTOCOL.md §3 (`policy_negotiation_url`).
    """
    if not lies_under(base_url, url) and url.endswith("/" + POLICY_TAIL):
        return base_url + POLICY_TAIL
    return url


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

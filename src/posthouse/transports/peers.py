"""HTTPS to the other side of a pairing; owner of the HTTP client library.

The server is known by its certificate, verified with the system's roots
(SSL_CERT_FILE names others), or by the SPKI pin of its pairing file. A pin is
compared inside the handshake, so not one octet of a request, the token above
all, leaves before it fits. Redirects are not followed, no proxy of the
environment is used, no cookie is kept, no content coding is taken.

Bounded: connecting, every read and the whole exchange by time; headers by the
library (100 KiB); bodies by size. A download may take long, as long as it keeps
a pace: what trickles is given up.
Spec: PROTOCOL.md §0, §1; RFC 9110, RFC 9112, RFC 9457; pins as in RFC 7469 §2.4.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hmac
import http.cookiejar
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final

import httpx2
import msgspec

import posthouse
from posthouse.errors import PeerFailure
from posthouse.log_sink import clean
from posthouse.ports_https import (
    MAX_JSON_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    PeerResponse,
    Sink,
)
from posthouse.proto.base_url import join_url, parse_base_url
from posthouse.proto.spki import hash_spki

# Of a refusal only the problem document is read, and no more of it than a log line needs.
MAX_PROBLEM_BYTES: Final = 16 * 1024
# A backup asks one thing after the other; a few more for call-backs meanwhile.
MAX_CONNECTIONS: Final = 4
# Shorter than servers keep idle connections (uvicorn 5 s), so that none dies under a POST.
KEEP_IDLE_SECONDS: Final = 3.0


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long the other side may take, in seconds; pace in octets a second.

    read: for the next octets. exchange: for a small request and its whole answer. A
    download gets `exchange` and, for each `pace` octets that came, another second.
    """

    connect: float = 10.0
    read: float = 20.0
    exchange: float = 40.0
    pace: int = 16 * 1024


DEFAULT_PATIENCE: Final = Patience()
HeardDate = Callable[[str, int], None]


class HttpsPeer:
    """See `posthouse.ports_https.Peer`. Used in one event loop; `close` it there.

    token: what we present, "" for a server that is to see none. spki_sha256: the pin, None to
    verify chain and name.
    now_us: the clock, for Retry-After given as a date. heard_date: told the party and the Date
    of each answer, microseconds since 1970.
    Raises ValueError when base_url is none.
    """

    def __init__(
        self,
        party: str,
        base_url: str,
        *,
        token: str,
        spki_sha256: bytes | None,
        now_us: Callable[[], int],
        patience: Patience = DEFAULT_PATIENCE,
        heard_date: HeardDate | None = None,
    ) -> None:
        secure = parse_base_url(base_url).scheme == "https"
        self.party = party
        self.base_url = base_url
        self._now_us = now_us
        self._patience = patience
        self._heard_date = heard_date
        self._client = httpx2.AsyncClient(
            verify=make_context(spki_sha256) if secure else False,
            headers={
                **({"Authorization": f"Bearer {token}"} if token else {}),
                "Accept-Encoding": "identity",
                "User-Agent": f"posthouse/{posthouse.__version__}",
            },
            timeout=httpx2.Timeout(patience.read, connect=patience.connect, pool=patience.exchange),
            limits=httpx2.Limits(
                max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_IDLE_SECONDS
            ),
            follow_redirects=False,
            trust_env=False,
            http2=False,
        )
        self._client.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> PeerResponse:
        """GET a small document; see the port."""
        async with self._exchange(
            "GET", path, {"Accept": "application/json", **(headers or {})}
        ) as (
            response,
            _,
        ):
            return await self._read_small(response)

    async def post(self, path: str, document: bytes) -> PeerResponse:
        """POST one JSON document; see the port."""
        if len(document) > MAX_JSON_BYTES:
            raise PeerFailure(
                f"{self.party}: our document has {len(document)} octets", stage="too_large"
            )
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        async with self._exchange("POST", path, headers, document) as (response, _):
            return await self._read_small(response)

    async def download(
        self,
        path: str,
        sink: Sink,
        *,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
    ) -> PeerResponse:
        """GET a large body into `sink`; see the port."""
        async with self._exchange("GET", path, dict(headers or {})) as (response, deadline):
            size = 0
            async for piece in self._pieces(response, max_bytes):
                sink.write(piece)
                size += len(piece)
                at = deadline.when()
                assert at is not None
                deadline.reschedule(at + len(piece) / self._patience.pace)
            return _make_response(response, b"", size)

    async def close(self) -> None:
        """Give back connections."""
        await self._client.aclose()

    # ------------------------------------------------------------------ one exchange

    @contextlib.asynccontextmanager
    async def _exchange(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> AsyncIterator[tuple[httpx2.Response, asyncio.Timeout]]:
        """Send, and give a good answer whose body is not read yet. Raises PeerFailure."""
        try:
            url = join_url(self.base_url, path)
        except ValueError as error:
            raise PeerFailure(f"{self.party}: {error}", stage="url") from error
        told = f"{self.party}: {method} {url}"
        progress = _Progress()
        request = self._client.build_request(
            method, url, headers=headers, content=body, extensions={"trace": progress.note}
        )
        try:
            async with asyncio.timeout(self._patience.exchange) as deadline:
                response = await self._client.send(request, stream=True)
                self._note_date(response)
                try:
                    await self._judge(response, told)
                    yield response, deadline
                finally:
                    await response.aclose()
        except PeerFailure:
            raise
        except TimeoutError as error:
            raise PeerFailure(f"{told}: took too long", stage="timeout") from error
        except (httpx2.HTTPError, httpx2.StreamError, ssl.SSLError) as error:
            raise _translate(error, told, progress) from error

    def _note_date(self, response: httpx2.Response) -> None:
        told = response.headers.get("date")
        if told is None or self._heard_date is None:
            return
        with contextlib.suppress(ValueError, OverflowError, TypeError):
            at = email.utils.parsedate_to_datetime(told).timestamp()
            self._heard_date(self.party, int(at * 1_000_000))

    async def _judge(self, response: httpx2.Response, told: str) -> None:
        status = response.status_code
        if 300 <= status <= 399 and status != 304:
            raise PeerFailure(
                f"{told}: answered {status}, a redirect, which is never followed",
                stage="redirect",
                status=status,
            )
        if not (200 <= status <= 299 or status == 304):
            title, problem = await self._read_problem(response)
            text = ": ".join(filter(None, (f"{told}: answered {status}", title, problem)))
            raise PeerFailure(
                text,
                stage="status",
                status=status,
                title=title,
                problem=problem,
                retry_after_seconds=_read_retry_after(
                    response.headers.get("retry-after"), self._now_us()
                ),
            )
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            raise PeerFailure(
                f"{told}: has Content-Encoding {clean(coding[:40])}, which nobody asked for",
                stage="protocol",
                status=status,
            )

    async def _read_small(self, response: httpx2.Response) -> PeerResponse:
        pieces = [piece async for piece in self._pieces(response, MAX_JSON_BYTES)]
        body = b"".join(pieces)
        return _make_response(response, body, len(body))

    async def _pieces(self, response: httpx2.Response, max_bytes: int) -> AsyncIterator[bytes]:
        """The body as it comes; never more than max_bytes. Raises PeerFailure."""
        declared = response.headers.get("content-length", "")
        size = int(declared) if declared.isascii() and declared.isdigit() else 0
        if size <= max_bytes:
            size = 0
            async for piece in response.aiter_raw():
                size += len(piece)
                if size > max_bytes:
                    break
                yield piece
        if size > max_bytes:
            raise PeerFailure(
                f"{self.party}: {response.url}: has more than {max_bytes} octets",
                stage="too_large",
                status=response.status_code,
            )

    async def _read_problem(self, response: httpx2.Response) -> tuple[str, str]:
        """title and detail of a problem+json, each one clean line; "" for what is not there."""
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/problem+json":
            return "", ""
        try:
            pieces = [piece async for piece in self._pieces(response, MAX_PROBLEM_BYTES)]
            found = json.loads(b"".join(pieces))
        except (PeerFailure, httpx2.HTTPError, httpx2.StreamError, ValueError, RecursionError):
            return "", ""
        if not isinstance(found, dict):
            return "", ""
        title, detail = found.get("title"), found.get("detail")
        return (
            clean(title[:200]) if isinstance(title, str) else "",
            clean(detail[:500]) if isinstance(detail, str) else "",
        )


class _Progress:
    """How far a request came, for the stage of a failure."""

    def __init__(self) -> None:
        self.shakes_hands = False

    async def note(self, event: str, _info: Mapping[str, Any]) -> None:
        if event.startswith("connection.start_tls."):
            self.shakes_hands = not event.endswith(".complete")


def _translate(error: Exception, told: str, progress: _Progress) -> PeerFailure:
    causes = list(_chain(error))
    tls = next((one for one in causes if isinstance(one, ssl.SSLError)), None)
    if isinstance(error, httpx2.TimeoutException):
        return PeerFailure(f"{told}: took too long", stage="timeout")
    if any(isinstance(one, socket.gaierror) for one in causes):
        return PeerFailure(f"{told}: its name is not found in DNS", stage="dns")
    if tls is not None or progress.shakes_hands:
        return PeerFailure(f"{told}: TLS: {_describe_tls(tls)}", stage="tls")
    if isinstance(error, (httpx2.ConnectError, httpx2.NetworkError)):
        cause = next((one for one in reversed(causes) if str(one)), error)
        return PeerFailure(f"{told}: {clean(str(cause)) or 'connection lost'}", stage="connect")
    return PeerFailure(f"{told}: not HTTP as agreed: {clean(str(error))[:200]}", stage="protocol")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what caused it, members of groups included."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield from _chain(member)
        error = error.__cause__ or error.__context__


def _describe_tls(error: ssl.SSLError | None) -> str:
    if error is None:
        return "the connection ended in the handshake"
    if isinstance(error, _WrongKey):
        return str(error.args[1])
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_message:
        return f"certificate verification failed: {error.verify_message}"
    return error.reason.replace("_", " ").lower() if error.reason else str(error)


def _make_response(response: httpx2.Response, body: bytes, size: int) -> PeerResponse:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return PeerResponse(status=response.status_code, headers=headers, body=body, size_bytes=size)


def _read_retry_after(text: str | None, now_us: int) -> int | None:
    """Seconds or a date (RFC 9110 §10.2.3), at most an hour; None for neither."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:10]), MAX_RETRY_AFTER_SECONDS)
    try:
        at = email.utils.parsedate_to_datetime(text)
        seconds = at.timestamp() - now_us / 1e6
    except (ValueError, OverflowError, TypeError):
        return None
    return int(max(0.0, min(seconds, float(MAX_RETRY_AFTER_SECONDS))))


# --------------------------------------------------------------------------- TLS


def make_context(spki_sha256: bytes | None) -> ssl.SSLContext:
    """Client side: TLS 1.2 or later; chain and name verified, or, with a pin, that alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if spki_sha256 is None:
        context.load_default_certs()
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.sslobject_class = _make_pinned(spki_sha256)
    return context


class _WrongKey(ssl.SSLError):
    """The pin does not fit. Being an SSLError it ends the handshake as any other."""


def _make_pinned(pin: bytes) -> type[ssl.SSLObject]:
    class Pinned(ssl.SSLObject):
        """Fails the handshake when the leaf has another key: nothing can be sent before."""

        def do_handshake(self) -> None:
            super().do_handshake()
            leaf = self.getpeercert(binary_form=True)
            try:
                fits = leaf is not None and hmac.compare_digest(hash_spki(leaf), pin)
            except ValueError:
                fits = False
            if not fits:
                raise _WrongKey(1, "the key of its certificate is not the one of the pairing file")

    return Pinned

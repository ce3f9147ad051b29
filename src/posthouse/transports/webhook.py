"""Alerts as a signed POST of JSON to a URL of the operator's.

The body is signed so that the receiver knows who sent it, and when::

    Posthouse-Signature: t=1700000000,v1=<hex HMAC-SHA256 of "1700000000." + body>

with the shared secret as key (the form Stripe made known). A receiver compares
in constant time, refuses what is older than some minutes, and knows a repeated
notice by `Posthouse-Notice`: it has the same number when it is tried again.

Certificate and name are verified, with the system's roots or `ca_file`; plain
http is for loopback only. Redirects are not followed, no proxy of the
environment is used. Time and answer are bounded; any 2xx means taken in charge.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx2
import msgspec

import posthouse
from posthouse.errors import TellingFailed
from posthouse.ports_alerts import Notice

EXCHANGE_SECONDS: Final = 30.0
MAX_ANSWER_BYTES: Final = 16 * 1024


class Webhook:
    """See `ports_alerts.AlertChannel`. `document` makes the body of a notice."""

    name = "webhook"

    def __init__(
        self,
        url: str,
        *,
        secret: bytes,
        ca_file: Path | None,
        clock_us: Callable[[], int],
        document: Callable[[Notice], object],
        exchange_seconds: float = EXCHANGE_SECONDS,
    ) -> None:
        """secret b"": not signed."""
        self._url = url
        self._secret = secret
        self._ca_file = ca_file
        self._clock_us = clock_us
        self._document = document
        self._exchange_seconds = exchange_seconds

    async def deliver(self, notice: Notice) -> None:
        """See `ports_alerts.AlertChannel`."""
        body = msgspec.json.encode(self._document(notice))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"posthouse/{posthouse.__version__}",
            "Posthouse-Notice": str(notice.number),
        }
        if self._secret:
            seconds = self._clock_us() // 1_000_000
            headers["Posthouse-Signature"] = sign(self._secret, seconds, body)
        try:
            async with asyncio.timeout(self._exchange_seconds):
                status = await self._post(body, headers)
        except TimeoutError as error:
            raise TellingFailed(f"no answer within {self._exchange_seconds:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError) as error:
            raise TellingFailed(f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise TellingFailed(f"the webhook answered {status}")

    async def _post(self, body: bytes, headers: dict[str, str]) -> int:
        context = await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_file)
        async with (
            httpx2.AsyncClient(
                verify=context, trust_env=False, follow_redirects=False, timeout=None
            ) as client,
            client.stream("POST", self._url, content=body, headers=headers) as response,
        ):
            read = 0
            async for piece in response.aiter_raw():
                read += len(piece)
                if read > MAX_ANSWER_BYTES:  # nobody looks at it
                    break
            return response.status_code


def sign(secret: bytes, seconds: int, body: bytes) -> str:
    """The value of Posthouse-Signature. seconds: since 1970."""
    digest = hmac.new(secret, b"%d." % seconds + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"

"""A primary over HTTPS: serves its roster, grants agreements, calls the backup back.

After the protocol's §0, §1 and §3; standard library only. State is in memory
and open to the tests (`agreements`, `requests`), which may also make it behave
badly through `hook`.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import secrets
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Agreement:
    """One grant, as a granter remembers it."""

    agreement_id: str
    recipe_id: str
    recipe_key: str
    mailbox: str
    forwarder_id: str
    policy_url: str
    one_time: str
    password: str = ""
    completed: bool = False


@dataclass
class Granter:
    """What is known and what happened.

    mailboxes: canonical texts that exist; pending: of those, whose grant needs a person's yes.
    """

    party: str
    token: str
    forwarder_id: str
    domains: tuple[str, ...]
    fold: Callable[[str], str]
    mailboxes: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    rosters: dict[str, dict[int, bytes]] = field(default_factory=dict)
    make_delta: Callable[[bytes, bytes], bytes] | None = None
    base_url: str = ""
    agreements: dict[str, Agreement] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    hook: Callable[[str, str], Answer | None] | None = None

    # -------------------------------------------------------------- the two POSTs and the GET

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer one request."""
        path, _, query = target.partition("?")
        self.requests.append((method, target))
        if self.hook is not None and (odd := self.hook(method, target)) is not None:
            return odd
        if headers.get("authorization") != f"Bearer {self.token}":
            return self._problem(401, {"WWW-Authenticate": "Bearer"})
        if method == "GET" and path.startswith("/v1/rosters/"):
            return self._roster(path.removeprefix("/v1/rosters/"), headers, query)
        if method == "POST" and path in ("/v1/agreements", "/v1/completion"):
            try:
                document = json.loads(body)
            except ValueError:
                return self._problem(400)
            if document.get("forwarder_id") != self.forwarder_id:
                return self._problem(403)
            return self._grant(document) if path == "/v1/agreements" else self._complete(document)
        return self._problem(404)

    def _roster(self, domain: str, headers: dict[str, str], query: str) -> Answer:
        known = self.rosters.get(domain)
        if not known:
            return self._problem(404)
        serial = max(known)
        tag = f'"{serial}"'
        if headers.get("if-none-match") == tag:
            return 304, {"ETag": tag}, b""
        since = urllib.parse.parse_qs(query).get("since", [""])[0]
        if self.make_delta is not None and since.isdecimal() and int(since) in known:
            told = {"ETag": tag, "Content-Type": "application/vnd.posthouse.roster-delta"}
            return 200, told, self.make_delta(known[int(since)], known[serial])
        return 200, {"ETag": tag, "Content-Type": "application/vnd.posthouse.roster"}, known[serial]

    def _grant(self, document: dict[str, Any]) -> Answer:
        assert document["category"] == "backup MX"
        results = []
        for recipe in document["recipes"]:
            (address,) = recipe["recipients"]
            known = self.agreements.get(recipe["recipe_id"])
            mailbox = self.fold(address)
            result: dict[str, Any] = {"recipe_id": recipe["recipe_id"]}
            results.append(result)
            if known is not None and (known.recipe_key, known.mailbox) != (
                recipe["recipe_key"],
                mailbox,
            ):
                return self._problem(409)
            if mailbox.rpartition("@")[2] not in self.domains:
                result["status"] = "refused"
            elif mailbox not in self.mailboxes:
                result["status"] = "no_such_user"
            else:
                self._write(known, recipe, mailbox, document, result)
        return 200, {}, json.dumps({"results": results}).encode()

    def _write(
        self,
        known: Agreement | None,
        recipe: dict[str, Any],
        mailbox: str,
        document: dict[str, Any],
        result: dict[str, Any],
    ) -> None:
        if known is None:
            known = self.agreements[recipe["recipe_id"]] = Agreement(
                agreement_id=f"a-{secrets.token_hex(12)}",
                recipe_id=recipe["recipe_id"],
                recipe_key=recipe["recipe_key"],
                mailbox=mailbox,
                forwarder_id=document["forwarder_id"],
                policy_url=document["policy_negotiation_url"],
                one_time="",
            )
        result["agreement_id"] = known.agreement_id
        if mailbox in self.pending:
            result.update(status="pending", retry_after_seconds=1)
            return
        result.update(status="granted", user_id=mailbox.rpartition("@")[0])
        if not known.completed:
            known.one_time = secrets.token_urlsafe(24)
            result.update(completion_url=self.base_url + "v1/completion", password=known.one_time)

    def _complete(self, document: dict[str, Any]) -> Answer:
        known = next(
            (a for a in self.agreements.values() if a.agreement_id == document["agreement_id"]),
            None,
        )
        if known is None:
            return self._problem(404)
        new = document.get("new_password")
        if known.completed and new is not None and new == known.password:
            return 204, {}, b""
        if document["password"] not in {known.one_time, known.password} - {""}:
            return self._problem(403)
        if new is None:
            return self._problem(403)
        if len(new) < 16:
            return self._problem(422)
        known.password, known.one_time, known.completed = new, "", True
        return 204, {}, b""

    @staticmethod
    def _problem(status: int, headers: dict[str, str] | None = None) -> Answer:
        document = {"type": "about:blank", "title": http.client.responses[status], "status": status}
        told = {"Content-Type": "application/problem+json", **(headers or {})}
        return status, told, json.dumps(document).encode()


def ask_policy(
    url: str,
    token: str,
    document: dict[str, Any],
    *,
    context: ssl.SSLContext | None = None,
) -> tuple[int, dict[str, Any]]:
    """Call a forwarder back at its policy negotiation URL; (status, document)."""
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None
    connection = (
        http.client.HTTPSConnection(parts.hostname, parts.port, timeout=10, context=context)
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    )
    with contextlib.closing(connection):
        told = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", parts.path, json.dumps(document).encode(), told)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else {}


@contextlib.contextmanager
def serving(granter: Granter, context: ssl.SSLContext | None = None) -> Iterator[Granter]:
    """Serve on a free loopback port; sets `base_url`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, told, answer = granter.answer(self.command, self.path, headers, body)
            self.send_response(status)
            for name, value in told.items():
                self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", str(len(answer)))
                if "Content-Type" not in told:
                    self.send_header("Content-Type", "application/json")
            self.end_headers()
            if status not in (204, 304):
                self.wfile.write(answer)

        do_GET = do_POST = do_PUT = _serve  # noqa: N815 (http.server asks for these names)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Tests look at `requests` instead."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    granter.base_url = f"{scheme}://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield granter
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

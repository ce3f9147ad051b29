"""A small DNS server for tests: real UDP and TCP on loopback, zones as plain maps.

::

    with DnsResponder({"example.com": {"MX": ["10 mx1.example.com."]},
                       "mx1.example.com": {"A": ["127.0.0.2"]}}) as dns:
        dns.address                       # "127.0.0.1:41234", for a resolver's server list
        dns.zones["example.com"] = {...}  # may change while it runs
        dns.servfail.add("example.com")   # likewise refuse, silent, truncate

It answers like a recursive resolver: a CNAME is followed inside the answer as
far as `zones` reaches. A name that is not in `zones` does not exist (NXDOMAIN),
unless a name below it does. It runs in a thread of its own, so tests with and
without an event loop can use it.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

Zones = dict[str, Mapping[str, Sequence[str]]]


class DnsResponder:
    """Answers for `zones` until closed.

    zones: name without trailing dot, lower case → record type → record texts in
    zone file form (names absolute). ttl: of every record, seconds.
    negative_ttl: SOA minimum of negative answers.
    servfail, refuse, silent: names answered with SERVFAIL, REFUSED, not at all;
    a bare name means every type, "name/TYPE" one type, "*" everything.
    truncate: names whose UDP answer is cut (TC), so that the asker must use TCP.
    queries: every question, (name, type, "udp" or "tcp"), oldest first.
    """

    def __init__(
        self,
        zones: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        *,
        ttl: int = 60,
        negative_ttl: int = 60,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.zones: Zones = dict(zones or {})
        self.ttl = ttl
        self.negative_ttl = negative_ttl
        self.servfail: set[str] = set()
        self.refuse: set[str] = set()
        self.silent: set[str] = set()
        self.truncate: set[str] = set()
        self.queries: list[tuple[str, str, str]] = []
        self._udp, self._tcp = _bind_pair(host, port)
        self.host, self.port = self._udp.getsockname()[:2]
        self._wake_r, self._wake_w = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="dns responder", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, "ip:port" or "[v6]:port"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def asked(self, name: str, rdtype: str) -> int:
        """How often a question was seen."""
        return sum(1 for n, t, _ in self.queries if (n, t) == (name, rdtype))

    def close(self) -> None:
        """Stop answering and give the port back. Harmless when repeated."""
        if self._thread.is_alive():
            self._wake_w.send(b"x")
            self._thread.join()
        for sock in (self._udp, self._tcp, self._wake_r, self._wake_w):
            sock.close()

    def __enter__(self) -> DnsResponder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._udp, selectors.EVENT_READ)
            selector.register(self._tcp, selectors.EVENT_READ)
            selector.register(self._wake_r, selectors.EVENT_READ)
            streams: dict[socket.socket, bytearray] = {}
            while True:
                for key, _ in selector.select():
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is self._wake_r:
                        for stream in streams:
                            stream.close()
                        return
                    if sock is self._udp:
                        self._serve_datagram()
                    elif sock is self._tcp:
                        stream, _ = sock.accept()
                        streams[stream] = bytearray()
                        selector.register(stream, selectors.EVENT_READ)
                    elif not self._serve_stream(sock, streams[sock]):
                        selector.unregister(sock)
                        del streams[sock]
                        sock.close()

    def _serve_datagram(self) -> None:
        wire, peer = self._udp.recvfrom(65535)
        reply = self._answer(wire, "udp")
        if reply is not None:
            self._udp.sendto(reply, peer)

    def _serve_stream(self, sock: socket.socket, pending: bytearray) -> bool:
        try:
            data = sock.recv(65535)
        except OSError:
            return False
        if not data:
            return False
        pending += data
        while len(pending) >= 2:
            (length,) = struct.unpack_from("!H", pending)
            if len(pending) < 2 + length:
                break
            reply = self._answer(bytes(pending[2 : 2 + length]), "tcp")
            del pending[: 2 + length]
            if reply is not None:
                sock.sendall(struct.pack("!H", len(reply)) + reply)
        return True

    def _answer(self, wire: bytes, over: str) -> bytes | None:
        try:
            query = dns.message.from_wire(wire)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return None
        name = question.name.to_text(omit_final_dot=True).lower()
        rdtype = dns.rdatatype.to_text(question.rdtype)
        self.queries.append((name, rdtype, over))
        if _listed(self.silent, name, rdtype):
            return None
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if _listed(self.servfail, name, rdtype):
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif _listed(self.refuse, name, rdtype):
            reply.set_rcode(dns.rcode.REFUSED)
        elif over == "udp" and _listed(self.truncate, name, rdtype):
            reply.flags |= dns.flags.TC
        else:
            self._fill(reply, name, rdtype)
        return reply.to_wire()

    def _fill(self, reply: dns.message.Message, name: str, rdtype: str) -> None:
        for _ in range(8):
            records = self.zones.get(name)
            if records is None:
                if not any(other.endswith("." + name) for other in self.zones):
                    reply.set_rcode(dns.rcode.NXDOMAIN)
                break
            if texts := records.get(rdtype):
                reply.answer.append(
                    dns.rrset.from_text_list(name + ".", self.ttl, "IN", rdtype, texts)
                )
                return
            if not (alias := records.get("CNAME")):
                break
            reply.answer.append(
                dns.rrset.from_text_list(name + ".", self.ttl, "IN", "CNAME", alias)
            )
            name = alias[0].rstrip(".").lower()
        top = dns.name.from_text(name + ".").labels[-2].decode() + "."
        soa = f"ns.invalid. hostmaster.invalid. 1 3600 600 86400 {self.negative_ttl}"
        reply.authority.append(dns.rrset.from_text(top, self.negative_ttl, "IN", "SOA", soa))


def _listed(names: set[str], name: str, rdtype: str) -> bool:
    return bool(names) and ("*" in names or name in names or f"{name}/{rdtype}" in names)


def _bind_pair(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP on the same port; the kernel picks it when `port` is 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(50):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.bind((host, port))
        tcp = socket.socket(family, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind((host, udp.getsockname()[1]))
            tcp.listen(16)
        except OSError:
            udp.close()
            tcp.close()
            continue
        return udp, tcp
    raise OSError("no port is free for both UDP and TCP")

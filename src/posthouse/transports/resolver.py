"""DNS questions, asked through dnspython: the only module that knows it.

Promise: an answer is either what DNS published or DnsTemporary; SERVFAIL,
REFUSED, time-outs and nonsense never look like "there is none". Answers are
cached for their TTL, absences for at most five minutes (a mailbox host that
was just added must not wait), failures for five seconds. When DNS fails, the
last good MX set or address list is served for up to a day after its TTL
(RFC 8767 §5: mail for a domain whose DNS is down can still go home).

Two caches, both bounded: a stranger's reverse names can never push out what
is known about the domains backed up. /etc/hosts is not read; DNSSEC is left
to the resolver that is asked.

Spec: RFC 1035, RFC 2308 (negative answers), RFC 7505 (null MX), RFC 8601
§2.7.3 (iprev), RFC 8767 (serving stale data), RFC 6761 §6.3 (localhost).
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename

from posthouse import observe
from posthouse.errors import DnsTemporary
from posthouse.ports_dns import MxRecord

DNS_PORT: Final = 53
MAX_POSITIVE_SECONDS: Final = 86_400.0  # RFC 8767 §4 allows 7 days; a move of servers should show
MAX_NEGATIVE_SECONDS: Final = 300.0  # RFC 2308 §5 allows hours; see above
FAILURE_SECONDS: Final = 5.0  # RFC 2308 §7 allows 5 minutes
STALE_SECONDS: Final = 86_400.0  # RFC 8767 §5 suggests 1 to 3 days
MAX_ENTRIES: Final = 4096
MAX_RECORDS: Final = 256  # of one answer; a TCP response can hold thousands
MAX_ALIASES: Final = 8  # answers that stop at a CNAME (RFC 1034 §3.6.2 sets no bound)
MAX_REVERSE_NAMES: Final = 5  # RFC 8601 leaves it open, SPF stops at 10 (RFC 7208 §4.6.4)


def parse_server(text: str) -> tuple[str, int]:
    """Read a name server: "ip", "ip:port" or "[v6]:port". Raises ValueError."""
    host, port = text.strip(), str(DNS_PORT)
    if host.startswith("["):
        host, closing, rest = host[1:].partition("]")
        if not closing or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: write [address]:port")
        port = rest[1:] or port
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(f"{text!r}: a name server is given by its IP address") from None
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise ValueError(f"{text!r}: {port!r} is not a port")
    return address, int(port)


class DnsResolver:
    """`ports_dns.Resolver` over the system's name servers or those given.

    servers: None for /etc/resolv.conf, else see `parse_server`. lifetime_seconds:
    the most one question may take, all servers and retries included. clock:
    monotonic seconds. Made and used in one event loop; opens no socket between questions.
    """

    def __init__(
        self,
        servers: Sequence[str] | None = None,
        *,
        lifetime_seconds: float = 10.0,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = _make_resolver(servers)
        self._resolver.lifetime = lifetime_seconds
        self._resolver.timeout = min(self._resolver.timeout, max(lifetime_seconds / 2, 0.1))
        self._homeward = _Cache(max_entries, clock)
        self._strangers = _Cache(max_entries, clock)
        self._asking: dict[tuple[str, str], asyncio.Task[_Answer]] = {}

    async def find_mx(self, domain: str) -> Sequence[MxRecord] | None:
        """See `ports_dns.Resolver`."""
        answer = await self._find(domain, "MX", self._homeward)
        if not answer.exists:
            return None
        records = []
        for text in answer.records:
            preference, _, exchange = text.partition(" ")
            records.append(MxRecord(int(preference), exchange.rstrip(".").lower()))
        return tuple(records)

    async def find_addresses(self, host: str) -> Sequence[str]:
        """See `ports_dns.Resolver`. IPv4 first; an IP text is its own address."""
        if _is_address(host):
            return (host,)
        if host == "localhost" or host.endswith(".localhost"):
            return ("127.0.0.1", "::1")
        found = await asyncio.gather(
            self._find(host, "A", self._homeward),
            self._find(host, "AAAA", self._homeward),
            return_exceptions=True,
        )
        addresses: list[str] = []
        trouble: BaseException | None = None
        for answer in found:
            if isinstance(answer, BaseException):
                trouble = answer
            else:
                addresses.extend(answer.records)
        if not addresses and trouble is not None:
            raise trouble
        return tuple(addresses)

    async def find_name(self, address: str) -> str | None:
        """See `ports_dns.Resolver`. Only names fit for a log or a header are returned."""
        try:
            wanted = ipaddress.ip_address(address)
            pointer = str(dns.reversename.from_address(address)).rstrip(".")
            rdtype = "A" if wanted.version == 4 else "AAAA"
            names = await self._find(pointer, "PTR", self._strangers)
            for text in names.records[:MAX_REVERSE_NAMES]:
                name = text.rstrip(".").lower()
                if not _is_host_name(name):
                    continue
                try:
                    found = await self._find(name, rdtype, self._strangers)
                except DnsTemporary:
                    continue
                if any(ipaddress.ip_address(one) == wanted for one in found.records):
                    return name
        except (DnsTemporary, ValueError, dns.exception.DNSException):
            return None
        return None

    async def _find(self, name: str, rdtype: str, cache: _Cache) -> _Answer:
        key = (name, rdtype)
        cached = cache.get(key)
        if cached is not None:
            if cached.failure:
                return cache.get_stale(key) or _fail(f"{name} {rdtype}: {cached.failure}")
            return cached
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask(name, rdtype))
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._asked(key, cache, task))
        # Shielded: one asker going away must not spoil the answer for the others.
        answer = await asyncio.shield(asking)
        if answer.failure:
            return cache.get_stale(key) or _fail(f"{name} {rdtype}: {answer.failure}")
        return answer

    def _asked(self, key: tuple[str, str], cache: _Cache, task: asyncio.Task[_Answer]) -> None:
        self._asking.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        answer = task.result()
        stale = cache.get_stale(key) if answer.failure else None
        if stale is not None and not stale.told:
            stale.told = True
            observe.note("dns", f"{key[0]} {key[1]}: {answer.failure}; using the last good answer")
        cache.put(key, answer)

    async def _ask(self, name: str, rdtype: str) -> _Answer:
        try:
            qname = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError):
            return _Answer(exists=False, ttl=MAX_NEGATIVE_SECONDS)  # no zone can hold it
        ttl = MAX_POSITIVE_SECONDS
        for _ in range(MAX_ALIASES):
            try:
                found = await self._resolver.resolve(
                    qname, rdtype, raise_on_no_answer=False, search=False
                )
            except dns.resolver.NXDOMAIN as absent:
                return _Answer(exists=False, ttl=min(ttl, _negative_ttl(absent, qname)))
            except (dns.exception.DNSException, OSError, ValueError) as error:
                return _Answer(ttl=FAILURE_SECONDS, failure=_describe(error))
            chain = found.chaining_result
            ttl = min(ttl, chain.minimum_ttl)
            if found.rrset is not None:
                return _Answer(records=_texts(found.rrset), ttl=ttl)
            if not chain.cnames or chain.canonical_name == qname:
                return _Answer(ttl=min(ttl, MAX_NEGATIVE_SECONDS))
            qname = chain.canonical_name  # the server left the rest of the chain to us
        return _Answer(ttl=FAILURE_SECONDS, failure="too many aliases")


# --------------------------------------------------------------------------- answers and cache


class _Answer:
    """What DNS said. failure: why nothing is known; told: a stale use of it was logged."""

    __slots__ = ("exists", "failure", "records", "told", "ttl")

    def __init__(
        self,
        *,
        records: tuple[str, ...] = (),
        exists: bool = True,
        ttl: float = 0.0,
        failure: str = "",
    ) -> None:
        self.records = records
        self.exists = exists
        self.ttl = ttl
        self.failure = failure
        self.told = False


class _Cache:
    """Answers by question: fresh for their TTL, the last good ones a day more. Oldest go first."""

    def __init__(self, max_entries: int, clock: Callable[[], float]) -> None:
        self._max = max_entries
        self._clock = clock
        self._fresh: dict[tuple[str, str], tuple[float, _Answer]] = {}
        self._good: dict[tuple[str, str], tuple[float, _Answer]] = {}

    def get(self, key: tuple[str, str]) -> _Answer | None:
        entry = self._fresh.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock():
            del self._fresh[key]
            return None
        return entry[1]

    def get_stale(self, key: tuple[str, str]) -> _Answer | None:
        entry = self._good.get(key)
        if entry is None or entry[0] <= self._clock():
            return None
        return entry[1]

    def put(self, key: tuple[str, str], answer: _Answer) -> None:
        now = self._clock()
        self._store(self._fresh, key, now + answer.ttl, answer)
        if answer.records:
            self._store(self._good, key, now + answer.ttl + STALE_SECONDS, answer)
        elif not answer.failure:
            self._good.pop(key, None)  # withdrawn on purpose

    def _store(
        self,
        table: dict[tuple[str, str], tuple[float, _Answer]],
        key: tuple[str, str],
        until: float,
        answer: _Answer,
    ) -> None:
        table.pop(key, None)
        while len(table) >= self._max:
            del table[next(iter(table))]
        table[key] = (until, answer)


def _fail(why: str) -> _Answer:
    raise DnsTemporary(why)


# --------------------------------------------------------------------------- dnspython


def _make_resolver(servers: Sequence[str] | None) -> dns.asyncresolver.Resolver:
    if servers is None:
        try:
            resolver = dns.asyncresolver.Resolver()
        except dns.resolver.NoResolverConfiguration:
            servers = ("127.0.0.1",)  # what resolv.conf(5) says an absent file means
    if servers is not None:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [
            dns.nameserver.Do53Nameserver(*parse_server(server)) for server in servers
        ]
    resolver.use_edns(0, 0, 1232)  # the DNS flag day 2020 size: no fragments
    resolver.cache = None
    return resolver


def _texts(rrset: Iterable[object]) -> tuple[str, ...]:
    texts = [str(record) for record in rrset]
    return tuple(texts[:MAX_RECORDS])


def _negative_ttl(absent: dns.resolver.NXDOMAIN, qname: dns.name.Name) -> float:
    try:
        chain = absent.response(qname).resolve_chaining()  # type: ignore[no-untyped-call]
    except (KeyError, dns.exception.DNSException):
        return FAILURE_SECONDS
    return min(float(chain.minimum_ttl), MAX_NEGATIVE_SECONDS)


def _describe(error: Exception) -> str:
    if isinstance(error, dns.exception.Timeout):
        return "no answer in time"
    if isinstance(error, dns.resolver.NoNameservers):
        return "every name server failed"
    return f"{type(error).__name__}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_host_name(name: str) -> bool:
    return 0 < len(name) <= 253 and all(c.isascii() and (c.isalnum() or c in "-_.") for c in name)

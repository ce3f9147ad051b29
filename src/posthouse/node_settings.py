"""From the configuration to what each part of a worker wants to know.

Pure, except that a wildcard in `listen` asks the kernel for the addresses of this host,
and the limit of open files for how many sessions there can be.
"""

from __future__ import annotations

import dataclasses
import resource
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from ipaddress import ip_address
from typing import Final

from posthouse.config_schema import Config
from posthouse.config_values import PULL
from posthouse.domain.nexthop import HostPort, pull_socket_name
from posthouse.domain.standby import Standby
from posthouse.domain.verdict import WhenUnknown
from posthouse.interfaces.doorkeeper import DoorSettings
from posthouse.proto.server_events import ServerLimits
from posthouse.services.quota import Limit
from posthouse.services.reception import ReceptionSettings
from posthouse.services.relay_settings import RelaySettings, RouteSettings
from posthouse.services.standby import StandbyRule
from posthouse.transports.smtp_out import OutSettings

# Open files of a worker beyond its sessions: relay, spool, logs.
FILES_BESIDE: Final = 256

_RTM_GETADDR = 22
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def make_reception(config: Config) -> ReceptionSettings:
    """Names and domains, as the door's verdicts need them."""
    return ReceptionSettings(
        hostname=config.hostname,
        domains={domain.name: WhenUnknown(domain.when_unknown) for domain in config.domains},
    )


def find_session_limit() -> int:
    """How many sessions the open files allowed to a process leave room for; at least one.

    Beyond it `accept` would fail and clients would wait unanswered instead of hearing 421.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, allowed - min(FILES_BESIDE, allowed // 2))


def make_door(config: Config, workers: int) -> DoorSettings:
    """Limits of one of `workers` doors."""
    smtp = config.smtp
    return DoorSettings(
        limits=ServerLimits(
            hostname=config.hostname,
            max_message_bytes=smtp.max_message_size,
            max_recipients=smtp.max_recipients,
            max_line=smtp.max_command_length,
            max_errors=smtp.max_errors,
            bare_newlines=smtp.bare_newlines,
            offer_starttls=smtp.certificate is not None,
            offer_etrn=True,
        ),
        max_connections=min(share(smtp.max_connections, workers), find_session_limit()),
        max_connections_per_client=smtp.max_connections_per_client,
        idle_timeout=smtp.idle_timeout.total_seconds(),
        total_timeout=smtp.session_timeout.total_seconds(),
        reverse_dns=smtp.reverse_dns,
    )


def make_relay(config: Config, workers: int, listening: Iterable[tuple[str, int]]) -> RelaySettings:
    """How one of `workers` relays works. listening: addresses and ports of our sockets."""
    relay = config.relay
    return RelaySettings(
        own_names=frozenset((config.hostname, *relay.own_names)),
        own_addresses=frozenset((*relay.own_addresses, *_expand(listening, relay.mx_port))),
        probe_interval_us=_us(relay.probe_interval),
        watch_interval_us=_us(relay.watch_interval),
        retry_us=tuple(map(_us, relay.retry)),
        concurrency=share(relay.concurrency, workers),
        idle_seconds=relay.idle_timeout.total_seconds(),
        mx_port=relay.mx_port,
        drain_rate=relay.drain_rate / workers,
        surge_share=relay.surge_share / 100,
        surge_window=relay.surge_window,
        surge_least=relay.surge_least,
    )


def make_routes(config: Config) -> dict[str, RouteSettings]:
    """The next hop of every domain."""
    run = config.data_dir / "run"
    return {
        domain.name: RouteSettings(
            hops=(HostPort(str(run / pull_socket_name(domain.name)), 0),)
            if domain.next_hop == PULL
            else tuple(HostPort(hop.host, hop.port) for hop in domain.next_hop)
        )
        for domain in config.domains
    }


def make_standby(config: Config) -> dict[str, StandbyRule]:
    """The domains that are not simply relayed while their primary is up."""
    return {
        domain.name: StandbyRule(
            mode=Standby(domain.standby),
            patience=domain.standby_patience,
            window_us=_us(domain.standby_window),
        )
        for domain in config.domains
        if domain.standby != "relay"
    }


def make_verify_senders(config: Config) -> dict[str, str]:
    """Domains whose primary may be asked about addresses → envelope sender of the questions."""
    return {
        domain.name: domain.verify_sender or ""
        for domain in config.domains
        if domain.verify == "auto" and domain.next_hop != PULL  # which we cannot call
    }


def make_quotas(config: Config) -> dict[str, Limit]:
    """The quota of every domain that has one."""
    return {
        domain.name: Limit(size_bytes=domain.quota_size, count=domain.quota_count)
        for domain in config.domains
        if domain.quota_size is not None or domain.quota_count is not None
    }


def make_keep_for(config: Config) -> Mapping[str, int]:
    """How long every domain's mail is kept, in microseconds."""
    return {domain.name: _us(domain.keep_for) for domain in config.domains}


def make_out(config: Config) -> OutSettings:
    """How sessions to next hops are opened."""
    reply = config.relay.reply_timeout.total_seconds()
    return OutSettings(
        helo_name=config.hostname,
        tls=config.relay.tls,
        ca_file=config.relay.ca_file,
        connect_timeout=config.relay.connect_timeout.total_seconds(),
        greeting_timeout=reply,
        command_timeout=reply,
        data_block_timeout=reply,
        final_dot_timeout=2 * reply,
    )


def make_proxy_out(config: Config) -> OutSettings:
    """The same while a client waits: it hears from us before it gives up (RFC 5321 §4.5.3.2).

    It gives a block of content three minutes and the final dot ten, often five.
    """
    out = make_out(config)
    return dataclasses.replace(
        out,
        greeting_timeout=min(out.greeting_timeout, 60.0),
        command_timeout=min(out.command_timeout, 60.0),
        data_block_timeout=min(out.data_block_timeout, 60.0),
        final_dot_timeout=min(out.final_dot_timeout, 270.0),
    )


def make_sources(config: Config) -> dict[str, str]:
    """The recipient file of every domain that has one."""
    return {
        domain.name: str(domain.recipients)
        for domain in config.domains
        if domain.recipients is not None
    }


def find_listed(config: Config) -> list[str]:
    """Domains whose recipients do not come from a roster."""
    return [domain.name for domain in config.domains if domain.roster is None]


def share(total: int, workers: int) -> int:
    """One worker's part, rounded up."""
    return -(-total // workers)


def _us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


# --------------------------------------------------------------------------- our addresses


def _expand(listening: Iterable[tuple[str, int]], mx_port: int) -> Iterator[str]:
    """Bound addresses; a wildcard stands for all that this host has now.

    Whoever listens on one loopback address at a port of its own shares it with
    others: there only the port that mail would be sent to makes it ours.
    """
    for text, port in listening:
        address = ip_address(text)
        if not address.is_unspecified:
            if not address.is_loopback or port == mx_port:
                yield text
            continue
        yield from ("127.0.0.0/8", "::1")
        try:
            yield from find_host_addresses()
        except OSError:  # a container that forbids netlink: `relay.own_addresses` is for it
            continue


def find_host_addresses() -> list[str]:
    """IPv4 and IPv6 addresses of all interfaces (rtnetlink(7)). Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(5)
        kernel.bind((0, 0))
        kernel.send(struct.pack("=IHHIIBxxxI", 24, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0, 0, 0))
        found: list[str] = []
        while True:
            data = kernel.recv(65536)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
                    return found
                found += _parse_addresses(data[24:length])
                data = data[(length + 3) & ~3 :]


def _parse_addresses(attributes: bytes) -> Iterator[str]:
    """Addresses of one interface: IFA_LOCAL is ours where the link has two ends."""
    values: dict[int, bytes] = {}
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if length < 4:
            break
        values[kind] = attributes[4:length]
        attributes = attributes[(length + 3) & ~3 :]
    packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    if packed is not None and len(packed) in (4, 16):
        yield str(ip_address(packed))

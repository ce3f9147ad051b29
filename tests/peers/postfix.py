"""Throw-away Postfix instances: a primary for scenarios, a rival backup MX for benchmarks.

Each instance owns one fresh directory (configuration, queue, data, mailboxes,
log) and one loopback port that stays the same over stop and start. Nothing is
chrooted, no DNS is asked, nothing outside the directory is read or written.
The machine's own Postfix, if there is one, is not touched.

    with Postfix.primary(users=["user", "other"]) as primary:
        ...                                  # mail to 127.0.0.1:primary.port
        primary.wait_messages(1)
        assert primary.messages()[0].content == sent

Postfix's master must be started by root; that is why the tests that use it
need root. Nothing but its listening starts as root in it.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from peers.processes import Guard, PeerFailed, PeerMissing, end_group, find_program, free_port

_MAILBOX_UID: Final = 65534  # nobody: virtual(8) refuses to deliver as root

_QUEUES: Final = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming"),
    *("private", "saved", "trace"),
)

_MASTER: Final = """\
127.0.0.1:{port} inet n - n - {limit} smtpd
pickup    unix  n - n 60    1 pickup
cleanup   unix  n - n -     0 cleanup
qmgr      unix  n - n 300   1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n -     - trivial-rewrite
bounce    unix  - - n -     0 bounce
defer     unix  - - n -     0 bounce
trace     unix  - - n -     0 bounce
verify    unix  - - n -     1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n -     - proxymap
smtp      unix  - - n -     {limit} smtp
relay     unix  - - n -     {limit} smtp
showq     unix  n - n -     - showq
error     unix  - - n -     - error
retry     unix  - - n -     - error
discard   unix  - - n -     - discard
virtual   unix  - n n -     - virtual
lmtp      unix  - - n -     - lmtp
anvil     unix  - - n -     1 anvil
scache    unix  - - n -     1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


_SCREENED: Final = """\
127.0.0.1:{port} inet n - n - 1 postscreen
smtpd     pass  - - n - {limit} smtpd
dnsblog   unix  - - n -     0 dnsblog
tlsproxy  unix  - - n -     0 tlsproxy
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One message in a mailbox of the primary.

    content: the message as the client sent it to the primary, CR LF line ends,
        without the fields the primary itself put on top.
    received: the primary's own Received field, unfolded: who it saw as client.
    return_path: envelope sender. recipient: the address it was delivered for.
    """

    recipient: str
    return_path: str
    received: str
    content: bytes


class Postfix:
    """One instance. Made by `primary` or `rival`; started by `with` or `start`."""

    def __init__(
        self,
        *,
        hostname: str,
        parameters: Mapping[str, str],
        directory: Path | None = None,
        port: int | None = None,
        process_limit: int = 100,
        log: bool = True,
        screened: bool = False,
    ) -> None:
        """Lay the instance out in a fresh directory inside `directory` (default: the temporary one).

        parameters: main.cf; they win over the defaults here. log: write `mail.log`.
        screened: postscreen(8) stands before smtpd.
        Raises PeerMissing when Postfix is not installed or we are not root.
        """
        find_program("postfix", "postfix")
        if os.geteuid() != 0:
            raise PeerMissing(
                "Postfix's master can only be started by root; run `make test` as root"
            )
        self.hostname = hostname
        self.port = free_port() if port is None else port
        _check_searchable(Path(directory or tempfile.gettempdir()))
        self.root = Path(tempfile.mkdtemp(prefix="postfix-", dir=directory))
        self.root.chmod(0o755)
        self.config_directory = self.root / "etc"
        self.queue_directory = self.root / "queue"
        self.mailboxes = self.root / "mailboxes"
        self.log_file = self.root / "mail.log"
        self._process_limit = process_limit
        self._screened = screened
        self._guard: Guard | None = None
        self._group: int | None = None
        self._parameters = {**self._base_parameters(log=log), **parameters}
        self._make_directories()
        self._write_configuration()

    # ----------------------------------------------------------------- the two roles

    @classmethod
    def primary(
        cls,
        *,
        domains: Sequence[str] = ("example.com",),
        users: Collection[str] = ("user", "postmaster"),
        hostname: str = "mail.example.com",
        certificate: Path | None = None,
        private_key: Path | None = None,
        recipient_replies: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        directory: Path | None = None,
        port: int | None = None,
        screened: bool = False,
    ) -> Self:
        """A primary that delivers to maildirs; unknown users get 550 5.1.1.

        users: local parts, known in every one of `domains`. recipient_replies:
        address → reply at RCPT, e.g. {"user@example.com": "450 4.2.1 busy"}.
        certificate, private_key: PEM; with them it offers STARTTLS.
        directory: must be searchable by everyone (pytest's tmp_path is not).
        """
        settings = {
            "mydestination": "",
            "virtual_mailbox_domains": " ".join(domains),
            "virtual_minimum_uid": "1",
            "virtual_uid_maps": f"static:{_MAILBOX_UID}",
            "virtual_gid_maps": f"static:{_MAILBOX_UID}",
            "smtpd_relay_restrictions": "reject_unauth_destination",
        }
        if certificate is not None and private_key is not None:
            settings |= {
                "smtpd_tls_security_level": "may",
                "smtpd_tls_cert_file": str(certificate),
                "smtpd_tls_key_file": str(private_key),
                "smtpd_tls_received_header": "yes",
            }
        instance = cls(
            hostname=hostname,
            parameters={**settings, **(parameters or {})},
            directory=directory,
            port=port,
            screened=screened,
        )
        instance.set_users(f"{user}@{domain}" for domain in domains for user in users)
        if recipient_replies is not None:
            instance.set_recipient_replies(recipient_replies)
        return instance

    @classmethod
    def rival(
        cls,
        *,
        relay_port: int,
        domain: str = "example.com",
        recipients: Iterable[str] = (),
        recipient_map: str = "",
        hostname: str = "mx2.example.net",
        parameters: Mapping[str, str] | None = None,
        directory: Path | None = None,
        process_limit: int = 200,
        log: bool = True,
    ) -> Self:
        """A backup MX for `domain`, tuned fairly, that relays to 127.0.0.1:`relay_port`.

        recipients: addresses, put in an lmdb map as relay_recipient_maps; or
        recipient_map: a map that was made before, such as "lmdb:/path".
        Raised: process limits, the concurrency of one destination (to the 20
        of our own default), the limits on errors and rates of a client;
        in_flow_delay, which throttles input when the queue grows, is off.
        """
        instance = cls(
            hostname=hostname,
            parameters={
                "mydestination": "",
                "relay_domains": domain,
                "transport_maps": f"inline:{{{domain}=relay:[127.0.0.1]:{relay_port}}}",
                "smtpd_relay_restrictions": "reject_unauth_destination",
                "in_flow_delay": "0",
                "default_process_limit": str(process_limit),
                "default_destination_concurrency_limit": "20",
                "initial_destination_concurrency": "20",
                "qmgr_message_active_limit": "20000",
                "qmgr_message_recipient_limit": "20000",
                "smtpd_error_sleep_time": "0",
                "smtpd_soft_error_limit": "2000000",
                "smtpd_hard_error_limit": "2000000",
                "smtpd_junk_command_limit": "2000000",
                "smtpd_client_connection_count_limit": "0",
                "smtpd_recipient_limit": "1000",
                **(parameters or {}),
            },
            directory=directory,
            process_limit=process_limit,
            log=log,
        )
        if not recipient_map:
            source = instance.config_directory / "recipients"
            with source.open("w") as file:
                file.writelines(f"{address} x\n" for address in recipients)
            make_recipient_map(source)
            recipient_map = f"lmdb:{source}"
        instance.set_parameters({"relay_recipient_maps": recipient_map})
        return instance

    # ----------------------------------------------------------------- running

    def start(self) -> None:
        """Start it and return when it listens. Raises PeerFailed with its log."""
        if self._group is not None:
            raise PeerFailed("this Postfix is running already")
        master = Path(_default("daemon_directory")) / "master"
        # -w: returns when the background process listens (or failed to).
        done = subprocess.run(
            [str(master), "-c", str(self.config_directory), "-w"],
            cwd=self.queue_directory,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "MAIL_CONFIG": str(self.config_directory),
                "LANG": "C",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
        pid_file = self.queue_directory / "pid" / "master.pid"
        if done.returncode != 0 or not pid_file.exists():
            said = done.stdout.decode("utf-8", "replace")
            raise PeerFailed(f"Postfix did not start: {said}{self.log()[-3000:]}")
        self._group = int(pid_file.read_text())
        self._guard = Guard(self._group)

    def stop(self) -> None:
        """End it; the port is closed and no process is left. The queue stays. Harmless when repeated."""
        if self._group is None:
            return
        group, self._group = self._group, None
        if self._guard is not None:
            self._guard.release()
        end_group(group)

    def restart(self) -> None:
        """Stop and start, e.g. after `set_parameters`."""
        self.stop()
        self.start()

    @property
    def alive(self) -> bool:
        """True between start and stop."""
        return self._group is not None

    @property
    def process_group(self) -> int:
        """The id of the group all its processes are in. Raises PeerFailed when stopped."""
        if self._group is None:
            raise PeerFailed("this Postfix is not running")
        return self._group

    def remove(self) -> None:
        """Stop it and delete its directory."""
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    # ----------------------------------------------------------------- configuration

    def set_parameters(self, parameters: Mapping[str, str]) -> None:
        """Change main.cf; counts from the next start."""
        self._parameters.update(parameters)
        self._write_configuration()

    def set_users(self, addresses: Iterable[str]) -> None:
        """The addresses a primary knows; counts at once for new smtpd processes (else restart)."""
        table = self.config_directory / "mailboxes"
        table.write_text("".join(f"{address} {address}/\n" for address in addresses))
        self.set_parameters(
            {
                "virtual_mailbox_base": str(self.mailboxes),
                "virtual_mailbox_maps": f"texthash:{table}",
            }
        )

    def set_recipient_replies(self, replies: Mapping[str, str]) -> None:
        """Answers at RCPT for single addresses, before any other rule; restart to have it obeyed."""
        table = self.config_directory / "recipient_replies"
        table.write_text("".join(f"{address} {reply}\n" for address, reply in replies.items()))
        self.set_parameters(
            {"smtpd_recipient_restrictions": f"check_recipient_access texthash:{table}"}
        )

    # ----------------------------------------------------------------- looking in

    def messages(self) -> list[Delivered]:
        """Everything in the mailboxes, oldest first."""
        paths = sorted(self.mailboxes.glob("*/new/*"), key=lambda path: path.stat().st_mtime_ns)
        return [_read_delivered(path, self.hostname) for path in paths]

    def wait_messages(self, count: int, *, seconds: float = 30) -> list[Delivered]:
        """Wait until at least `count` messages lie in the mailboxes. Raises PeerFailed with the log."""
        deadline = time.monotonic() + seconds
        while len(list(self.mailboxes.glob("*/new/*"))) < count:
            if time.monotonic() > deadline:
                found = len(list(self.mailboxes.glob("*/new/*")))
                raise PeerFailed(
                    f"{found} of {count} messages after {seconds:g} s; log: {self.log()[-3000:]}"
                )
            time.sleep(0.02)
        return self.messages()

    def queue(self) -> list[dict[str, Any]]:
        """What `postqueue -j` says: one object a queued message. Needs a running instance."""
        said = _run(find_program("postqueue", "postfix"), "-c", str(self.config_directory), "-j")
        return [json.loads(line) for line in said.splitlines()]

    def wait_settled(self, *, seconds: float = 60) -> None:
        """Wait until nothing is on its way: all that is left is deferred or on hold.

        Before `flush` this is a must: a flush while messages are still being
        deferred is undone by those deferrals (the destination counts as dead again).
        """
        places = [self.queue_directory / name for name in ("maildrop", "incoming", "active")]
        deadline = time.monotonic() + seconds
        while any(os.listdir(place) for place in places):
            if time.monotonic() > deadline:
                raise PeerFailed(f"the queue did not settle in {seconds:g} s")
            time.sleep(0.02)

    def flush(self) -> None:
        """Try to deliver everything queued, now (`postqueue -f`)."""
        _run(find_program("postqueue", "postfix"), "-c", str(self.config_directory), "-f")

    def log(self) -> str:
        """What it logged so far, "" without a log."""
        if not self.log_file.exists():
            return ""
        return self.log_file.read_text("utf-8", "replace")

    # ----------------------------------------------------------------- inside

    def _base_parameters(self, *, log: bool) -> dict[str, str]:
        return {
            "compatibility_level": "3.6",
            "myhostname": self.hostname,
            "mydestination": "",
            "mynetworks": "",
            "mynetworks_style": "host",
            "inet_interfaces": "loopback-only",
            "inet_protocols": "ipv4",
            "queue_directory": str(self.queue_directory),
            "data_directory": str(self.root / "data"),
            "maillog_file": str(self.log_file) if log else "",
            "maillog_file_prefixes": f"{self.root}, /var, /dev/null",
            "syslog_name": "postfix",
            "disable_dns_lookups": "yes",
            "smtpd_peername_lookup": "no",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "local_transport": "error:5.1.1 no local delivery",
            "biff": "no",
            "append_dot_mydomain": "no",
            "notify_classes": "",
            # Clients on loopback count as local: no field may be added to or rewritten in their mail.
            "local_header_rewrite_clients": "",
            "smtpd_discard_ehlo_keywords": "",
            "message_size_limit": "104857600",
            "mailbox_size_limit": "0",
            "virtual_mailbox_limit": "0",
            "queue_minfree": "0",
            "smtputf8_enable": "yes",
            "smtpd_tls_security_level": "none",
            "smtp_tls_security_level": "none",
        }

    def _make_directories(self) -> None:
        owner = pwd.getpwnam(_default("mail_owner")).pw_uid
        drop = grp.getgrnam(_default("setgid_group")).gr_gid
        plan = [(self.config_directory, 0, 0, 0o755), (self.queue_directory, 0, 0, 0o755)]
        plan += [(self.queue_directory / name, owner, 0, 0o700) for name in _QUEUES]
        plan += [
            (self.queue_directory / "maildrop", owner, drop, 0o730),
            (self.queue_directory / "public", owner, drop, 0o710),
            (self.queue_directory / "pid", 0, 0, 0o755),
            (self.root / "data", owner, 0, 0o700),
            (self.mailboxes, _MAILBOX_UID, _MAILBOX_UID, 0o700),
        ]
        for path, uid, gid, mode in plan:
            path.mkdir()
            os.chown(path, uid, gid)
            path.chmod(mode)

    def _services(self) -> str:
        if not self._screened:
            return _MASTER
        return _SCREENED + _MASTER.partition("\n")[2]

    def _write_configuration(self) -> None:
        main = "".join(f"{name} = {value}\n" for name, value in self._parameters.items())
        (self.config_directory / "main.cf").write_text(main)
        (self.config_directory / "master.cf").write_text(
            self._services().format(port=self.port, limit=self._process_limit)
        )
        # Postfix waits until a file it reads has not changed for two seconds. It need not.
        for path in self.config_directory.iterdir():
            if not path.is_symlink():
                os.utime(path, (time.time() - 60, time.time() - 60))
        # lmdb is a plug-in that this file names; it lives beside the installed configuration.
        for name in ("dynamicmaps.cf", "dynamicmaps.cf.d"):
            link = self.config_directory / name
            with contextlib.suppress(FileExistsError):
                link.symlink_to(Path(_default("config_directory")) / name)


def make_recipient_map(source: Path) -> None:
    """Compile a file of "address x" lines to `source`.lmdb; use it as "lmdb:`source`"."""
    _run(find_program("postmap", "postfix"), f"lmdb:{source}")


def _check_searchable(directory: Path) -> None:
    """Postfix's daemons are not root: every directory above the instance must let them through."""
    for place in (directory.resolve(), *directory.resolve().parents):
        if not place.stat().st_mode & stat.S_IXOTH:
            raise PeerFailed(f"{place} is not searchable by all: Postfix cannot work below it")


def _default(parameter: str) -> str:
    """A compiled-in default of the installed Postfix."""
    if parameter not in _defaults:
        _defaults[parameter] = _run(find_program("postconf", "postfix"), "-dh", parameter).strip()
    return _defaults[parameter]


_defaults: Final[dict[str, str]] = {}


def _run(*command: str) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise PeerFailed(f"{' '.join(command)}: exit code {done.returncode}: {text}")
    return text


def _read_delivered(path: Path, hostname: str) -> Delivered:
    """Undo what virtual(8) and the primary's smtpd put on top, and its LF line ends."""
    rest = path.read_bytes()
    seen: dict[str, str] = {}
    while "received" not in seen:
        field = re.match(rb"([!-9;-~]+):[^\n]*\n(?:[ \t][^\n]*\n)*", rest)
        if field is None or field[1].lower() not in _TOP_FIELDS:
            raise PeerFailed(f"{path}: no trace fields of {hostname} on top")
        text = re.sub(rb"\s*\n\s+", b" ", field[0]).decode("utf-8", "replace")
        seen[field[1].decode().lower()] = text.partition(":")[2].strip()
        rest = rest[field.end() :]
    return Delivered(
        recipient=seen.get("delivered-to", ""),
        return_path=seen.get("return-path", "").strip("<>"),
        received=seen["received"],
        content=rest.replace(b"\n", b"\r\n"),
    )


_TOP_FIELDS: Final = (b"return-path", b"x-original-to", b"delivered-to", b"received")

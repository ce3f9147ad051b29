"""What no single value of the configuration shows: names that clash, files that cannot be read.

Opens certificates, keys and recipient files to see that they can be used.
Writes nothing and asks nobody.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from posthouse.config_locator import Path as KeyPath


class Findings:
    """Mistakes and warnings with their places."""

    def __init__(self, file: str, lines: dict[KeyPath, int]) -> None:
        self.file = file
        self.lines = lines
        self.lists_may_wait = False
        self.check_files = True
        self.lists: list[tuple[str, str]] = []  # recipient files that can be read, by domain
        self.mistakes: list[tuple[int, str]] = []
        self.warnings: list[tuple[int, str]] = []

    def line_of(self, path: KeyPath) -> int:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def _format(self, path: KeyPath, what: str, remedy: str) -> tuple[int, str]:
        line = self.line_of(path)
        name = ".".join(part for part in path if isinstance(part, str))
        subject = f"{name}: " if name else ""
        return line, f"{self.file}:{line}: {subject}{what}; {remedy}"

    def sorted_mistakes(self) -> list[str]:
        """In the order of the file."""
        return [text for _, text in sorted(self.mistakes, key=lambda found: found[0])]

    def sorted_warnings(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(text for _, text in sorted(self.warnings, key=lambda found: found[0]))

    def wrong(self, path: KeyPath, what: str, remedy: str) -> None:
        self.mistakes.append(self._format(path, what, remedy))

    def warn(self, path: KeyPath, what: str, remedy: str) -> None:
        self.warnings.append(self._format(path, what, remedy))


def check_whole(
    top: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    domains: list[dict[str, Any]],
    findings: Findings,
) -> None:
    """What no single value shows. Values that were wrong are None here."""
    _check_domains(domains, findings)
    _check_next_hops(top, sections, domains, findings)
    check_certificate("smtp", sections["smtp"], findings)
    if findings.check_files:
        if sections["relay"]["ca_file"] is not None:
            _check_readable(("relay", "ca_file"), sections["relay"]["ca_file"], findings.wrong)
        check_user(top["user"], findings)
        _check_places(top["data_dir"], sections["log"]["to"], findings)
    names = {domain["name"] for domain in domains if domain["name"]}
    if top["contact"] is not None:
        at = top["contact"].rpartition("@")[2]
        if at in names:
            findings.warn(
                ("contact",),
                f"{at} is behind this backup: alerts would wait for the primary they are about",
                "use an address elsewhere",
            )
        hops = {hop.host for domain in domains for hop in domain["next_hop"] or ()}
        if at in hops:
            findings.warn(
                ("contact",),
                f"{at} is a next hop of this backup: no alert is sent through it",
                "use an address elsewhere",
            )


def check_user(name: str | None, findings: Findings) -> None:
    """The account is there."""
    if name is None:
        return
    try:
        pwd.getpwnam(name)
    except KeyError:
        findings.wrong(("user",), f"there is no user {name}", "create it or name another")


def _check_places(data_dir: Path | None, log: str | None, findings: Findings) -> None:
    """What is there must be of the right kind; what is not will be made."""
    if data_dir is not None:
        there = next((path for path in (data_dir, *data_dir.parents) if path.exists()), None)
        if there is not None and not there.is_dir():
            findings.wrong(("data_dir",), f"{there} is not a directory", "name another place")
    if log is not None and log.startswith("/"):
        # A node that starts logs to stderr instead: no reason to turn mail away.
        tell = findings.warn if findings.lists_may_wait else findings.wrong
        parent = os.path.dirname(log)
        if os.path.isdir(log):
            tell(("log", "to"), f"{log} is a directory", "name a file in it")
        elif not os.path.isdir(parent):
            tell(("log", "to"), f"{parent} is not a directory", "make it first")


def _check_domains(domains: list[dict[str, Any]], findings: Findings) -> None:
    first: dict[str, int] = {}
    for index, domain in enumerate(domains):
        name = domain["name"]
        if name is not None and first.setdefault(name, index) != index:
            line = findings.line_of(("domain", first[name], "name"))
            findings.wrong(
                ("domain", index, "name"), f"{name} stands twice (line {line})", "remove one"
            )
        path = ("domain", index, "recipients")
        if domain["recipients"] is not None:
            if not findings.check_files or not isinstance(domain["recipients"], Path):
                continue
            tell = findings.warn if findings.lists_may_wait else findings.wrong
            if _check_readable(path, domain["recipients"], tell) and name is not None:
                findings.lists.append((name, str(domain["recipients"])))
        elif path not in findings.lines and domain["when_unknown"] == "defer":
            off = domain["verify"] == "off"
            findings.warn(
                path,
                f"{name} has no list: all its recipients but postmaster get 451"
                + ("" if off else " unless the primary is up to be asked, or was asked before"),
                'add recipients = "FILE"',
            )


def _check_next_hops(
    top: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    domains: list[dict[str, Any]],
    findings: Findings,
) -> None:
    relay = sections["relay"]
    own = {top["hostname"], *(relay["own_names"] or ()), *(relay["own_addresses"] or ())}
    doors = {(door.address, door.port) for door in sections["smtp"]["listen"] or () if door.port}
    for index, domain in enumerate(domains):
        for at, hop in enumerate(domain["next_hop"] or ()):
            wildcard = "::" if ":" in hop.host else "0.0.0.0"
            loops = hop.host == "::1" or hop.host.startswith("127.")
            if (
                hop.host in own
                or (hop.host, hop.port) in doors
                or (loops and (wildcard, hop.port) in doors)
            ):
                findings.wrong(
                    ("domain", index, "next_hop", at),
                    f"{hop} is this host: mail would go round in circles",
                    "name the primary",
                )


def _check_readable(path: KeyPath, file: Path, tell: Callable[[KeyPath, str, str], None]) -> bool:
    try:
        with open_regular(file) as stream:
            stream.read(1)
    except OSError as error:
        tell(path, f"{file} cannot be read: {error.strerror}", "name a readable file")
        return False
    return True


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; anything else, such as a named pipe, would have us wait.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")


def check_certificate(section: str, values: dict[str, Any], findings: Findings) -> None:
    """Both files of a section or none, and that they can be used together."""
    certificate, key = values["certificate"], values["private_key"]
    for name, other in (("certificate", "private_key"), ("private_key", "certificate")):
        path = (section, name)
        if values[name] is None and values[other] is not None and path not in findings.lines:
            findings.wrong(path, f"is missing beside {other}", "TLS needs both")
    if certificate is None or key is None or not findings.check_files:
        return
    readable = _check_readable((section, "certificate"), certificate, findings.wrong)
    if not _check_readable((section, "private_key"), key, findings.wrong) or not readable:
        return
    if os.stat(key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
        findings.warn((section, "private_key"), f"{key} is open to every user", f"chmod o= {key}")
    _check_pair(section, certificate, key, findings)


def _check_pair(section: str, certificate: Path, key: Path, findings: Findings) -> None:
    import ssl  # costs 2 MiB and 15 ms that a node without a certificate can do without

    encrypted = False

    def refuse_password() -> str:
        nonlocal encrypted
        encrypted = True
        return ""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=refuse_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "no usable PEM data"
        if encrypted:
            findings.wrong(
                (section, "private_key"), f"{key} is encrypted", "decrypt it: nobody types at start"
            )
        elif reason == "KEY_VALUES_MISMATCH":
            findings.wrong(
                (section, "private_key"), f"{key} is not the key of {certificate}", "pair them"
            )
        else:
            findings.wrong(
                (section, "certificate"),
                f"{certificate} and {key} cannot be loaded ({reason})",
                "both must be PEM files",
            )

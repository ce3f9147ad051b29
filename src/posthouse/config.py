"""Frozen settings from posthouse.toml; reports every mistake at once.

Promise: `load` returns a `Config` whose every value has been read, or raises
ConfigError with one line for each mistake, `file:line: key: what; remedy`, in
the order of the file. Certificates and recipient files are opened to see that
they can be read; nothing is written and no network is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from posthouse.config_checks import Findings, check_whole, open_regular
from posthouse.config_locator import Path as KeyPath
from posthouse.config_locator import locate_keys
from posthouse.config_schema import (
    NONE,
    REQUIRED,
    SECTIONS,
    Config,
    DnsConfig,
    DomainConfig,
    Key,
    LogConfig,
    RelayConfig,
    SmtpConfig,
    SpoolConfig,
)
from posthouse.config_values import Wrong, say
from posthouse.errors import ConfigError

# A configuration with 100,000 domains has about 10 MB.
MAX_FILE_BYTES = 64 * 1024 * 1024

_BARE_WORD = re.compile(r"""=\s*[^\s"'\[{\d#]""")


def load(file: str | Path, *, lists_may_wait: bool = False, check_files: bool = True) -> Config:
    """Read and check a configuration file. Raises ConfigError with all its mistakes.

    lists_may_wait: a recipients file that cannot be read is a warning only. A node
    starts all the same, with the list of before in force: one lost file of one
    domain is no reason to turn away the mail of all.
    check_files: False for operators' commands, which need none of the files named.
    """
    path = Path(file)
    text = _read_text(path)
    table = _parse_toml(path, text)
    findings = Findings(str(path), locate_keys(text))
    findings.lists_may_wait = lists_may_wait
    findings.check_files = check_files
    config = _build(table, path.absolute(), findings)
    if findings.mistakes or config is None:
        raise ConfigError(findings.sorted_mistakes())
    return config


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            [f"{path}: cannot be read: {error.strerror}; name another file with --config"]
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_FILE_BYTES} octets; is it the right file?"])
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8; save the file as UTF-8"]) from error


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        match = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        source = text.split("\n")
        line = int(match[1]) if match else len(source)
        what = message[: match.start()] if match else message
        content = source[line - 1] if line <= len(source) else ""
        if "overwrite" in what or "twice" in what:
            remedy = "the same key or table stands twice: remove one"
        elif _BARE_WORD.search(content) or (match and "=" not in content and "[" not in content):
            remedy = 'write key = value, and texts in quotes: key = "text"'
        else:
            remedy = "see toml.io for how to write it"
        raise ConfigError([f"{path}:{line}: syntax: {what}; {remedy}"]) from error
    except RecursionError as error:
        raise ConfigError(
            [f"{path}: syntax: nested too deeply; nothing here needs more than two levels"]
        ) from error
    except ValueError as error:  # of a number with thousands of digits
        raise ConfigError(
            [f"{path}: syntax: a number with thousands of digits; write a smaller one"]
        ) from error


# --------------------------------------------------------------------------- sections


def _build(table: dict[str, Any], file: Path, findings: Findings) -> Config | None:
    _check_names((), table, (*(k.name for k in SECTIONS[""]), *filter(None, SECTIONS)), findings)
    top = _read_section((), "", table, findings)
    sections = {
        name: _read_section((name,), name, _as_table(name, table, findings), findings)
        for name in SECTIONS
        if name not in ("", "domain")
    }
    domains = [
        _read_section(("domain", index), "domain", element, findings)
        for index, element in enumerate(_as_tables(table, findings))
    ]
    _resolve_paths(file.parent, top, sections, domains)
    check_whole(top, sections, domains, findings)
    if findings.mistakes:
        return None
    config = Config(
        file=file,
        smtp=SmtpConfig(**sections["smtp"]),
        relay=RelayConfig(**sections["relay"]),
        dns=DnsConfig(**sections["dns"]),
        log=LogConfig(**sections["log"]),
        spool=SpoolConfig(**sections["spool"]),
        domains=tuple(DomainConfig(**domain) for domain in domains),
        **top,
    )
    return dataclasses.replace(config, warnings=findings.sorted_warnings())


def _as_table(name: str, table: dict[str, Any], findings: Findings) -> dict[str, Any]:
    value = table.get(name, {})
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        findings.wrong((name,), "stands in two pairs of brackets", f"write [{name}]")
    else:
        findings.wrong((name,), f"{say(value)} is not a table", f"write [{name}], keys below")
    return {}


def _as_tables(table: dict[str, Any], findings: Findings) -> list[dict[str, Any]]:
    value = table.get("domain")
    if isinstance(value, list) and value and all(isinstance(element, dict) for element in value):
        return value
    if value is None or value == []:
        findings.wrong((), "no domain", "add [[domain]] with its name")
    else:
        findings.wrong(("domain",), "is not a list of tables", "write [[domain]], twice bracketed")
    return []


def _check_names(
    path: KeyPath, table: dict[str, Any], known: tuple[str, ...], findings: Findings
) -> None:
    for name in table:
        if name not in known:
            kind = "unknown table" if isinstance(table[name], (dict, list)) else "unknown key"
            findings.wrong((*path, name), kind, _nearest(name, known))


def _nearest(name: str, known: tuple[str, ...]) -> str:
    folded = name.lower().replace("-", "_")
    for section, keys in SECTIONS.items():
        if section and folded not in known and any(key.name == folded for key in keys):
            brackets = "[[domain]]" if section == "domain" else f"[{section}]"
            return f"it belongs below {brackets}"
    for near in difflib.get_close_matches(folded, known, n=1, cutoff=0.7):
        return f"did you mean {near}?"
    for section, keys in SECTIONS.items():
        names = [key.name for key in keys]
        for near in difflib.get_close_matches(folded, names, n=1, cutoff=0.75):
            if not section:
                return f"did you mean {near}, above all tables?"
            brackets = "[[domain]]" if section == "domain" else f"[{section}]"
            return f"did you mean {near}, below {brackets}?"
    return "remove it (docs/configuration.md lists all keys)"


def _read_section(
    path: KeyPath, section: str, table: dict[str, Any], findings: Findings
) -> dict[str, Any]:
    """Read every key; what is wrong or missing becomes None and a finding."""
    keys = SECTIONS[section]
    if section:
        _check_names(path, table, tuple(key.name for key in keys), findings)
    return {key.name: _read_key((*path, key.name), key, table, findings) for key in keys}


def _read_key(path: KeyPath, key: Key, table: dict[str, Any], findings: Findings) -> Any:
    if key.name not in table:
        if key.default is REQUIRED:
            findings.wrong(path, "is missing", f"add {key.name} = …")
        if key.default is REQUIRED or key.default is NONE:
            return None
        return key.read(key.default)
    try:
        return key.read(table[key.name])
    except Wrong as wrong:
        for below, what, remedy in wrong.findings:
            findings.wrong((*path, *below), what, remedy)
        return None


def _resolve_paths(
    base: Path,
    top: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    domains: list[dict[str, Any]],
) -> None:
    """Make paths absolute; relative ones start where the file is."""
    for holder, name in (
        (top, "data_dir"),
        (sections["smtp"], "certificate"),
        (sections["smtp"], "private_key"),
        (sections["relay"], "ca_file"),
        *((domain, "recipients") for domain in domains),
    ):
        if holder[name] is not None:
            holder[name] = base / holder[name]
    log = sections["log"]
    if log["to"] not in (None, "auto", "stderr", "syslog"):
        log["to"] = str(base / log["to"])

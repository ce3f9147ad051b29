"""Rules made from Postfix's tables of patterns say what Postfix says when it is asked."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from peers.postfix_maps import Maps
from posthouse.domain.recipients import Fold
from posthouse.domain.roster_rules import compile_rules
from posthouse.domain.source_specs import parse_source
from posthouse.node_sources import open_source
from posthouse.ports_sources import Harvest

REGEXP = [
    r"/^sales-[0-9]+@example\.com$/ OK",
    r"/^old-.*@/ REJECT",
    r"/^(info|help)(desk)?@(example\.com|example\.net)$/ OK",
    r"/^[^@]*-list@example\.com$/ OK",
    r"/team@/ OK",
    r"/^x[[:digit:]]{2,3}@example.com/ OK",
    r"/^Keep@example\.com$/i OK",
    r"/^a\+b@example\.com$/ OK",
    r"/^other@example\.org$/ OK",
    r"/^[]a-]z@example\.com$/ OK",
    r",^a/b@example\.com$, OK",
]
# Debian has pcre tables in a package of their own; Python's `re` stands for it.
PCRE = [
    r"^sales-\d+@example\.com$",
    r"^(?:one|two)@example\.com$",
    r"^\w+\.\w+@example\.com$",
    r"^[\w+-]+-owner@example\.com$",
    r"^(?i:info)@",
    r"-@example\.(?:com|net)",
]
PIECES = [
    "sales-",
    "old-",
    "info",
    "help",
    "desk",
    "-list",
    "team",
    "x",
    "12",
    "123",
    "Keep",
    "keep",
    "a+b",
    "other",
    "az",
    "]z",
    "-z",
    "one",
    "j.doe",
    "-owner",
    "a/b",
    "nobody",
    "-",
    "",
]
LOCALS = sorted({a + b for a, b in itertools.product(PIECES, PIECES)} - {""})


def find_by_rule(table: Path, kind: str) -> set[str]:
    """The local parts that the rule made from a table of one line matches."""
    harvest = Harvest()
    source = open_source(parse_source(f"postfix:{kind}:{table}"), Fold())
    assert list(source.read("example.com", harvest)) == []
    find = compile_rules(harvest.rules)
    return {local for local in LOCALS if find(local) is not None}


@pytest.mark.peers
@pytest.mark.parametrize("line", REGEXP)
def test_rules_agree_with_postmap(line: str, tmp_path: Path) -> None:
    """For every local part, a rule matches exactly where postmap -q finds something."""
    maps = Maps(tmp_path)
    table = maps.put("table", line + "\n")
    found = maps.ask("regexp", table, [f"{local}@example.com" for local in LOCALS])
    assert find_by_rule(table, "regexp") == {address.partition("@")[0] for address in found}
    assert bool(found) == ("other" not in line)


@pytest.mark.parametrize("pattern", PCRE)
@pytest.mark.parametrize("flag", ["", "i"])
def test_rules_agree_with_perl_expressions(pattern: str, flag: str, tmp_path: Path) -> None:
    """For every local part, a rule matches exactly where the expression finds something."""
    compiled = re.compile(pattern, 0 if flag else re.IGNORECASE)
    wanted = {local for local in LOCALS if compiled.search(f"{local}@example.com")}
    table = tmp_path / "table"
    table.write_text(f"/{pattern}/{flag} OK\n")
    assert find_by_rule(table, "pcre") == wanted
    assert wanted

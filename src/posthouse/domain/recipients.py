"""Who exists: the canonical text of a local part, and the recipients text file.

The file has one address or local part a line, so that a Postfix
`relay_recipients` table works as it is::

    # comment
    % delimiters = +-          options stand above the first recipient
    alice@example.com OK       whatever follows the address is ignored
    bob                        a bare local part belongs to the domain
    "marta lee"@example.com    quoted as in SMTP
    @example.com               catch-all: every local part exists
    carol@example.net          another domain: skipped and counted

A file is believed whole or not at all: half a list would refuse mail to people
who exist. So every line that cannot be read is a mistake, and whatever cannot
be told from a slip (the wrong file, an indented recipient, a wildcard of
another mail server) is one too.

Canonical text is the same for these files and for every other kind of list:
`fold` says how the primary reads a local part.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

import msgspec

from posthouse.errors import AddressError
from posthouse.mail.address import MAX_LOCAL_OCTETS, normalize_domain, unquote_local_part

DIGEST_BYTES: Final = 16

# An address has some 320 octets (RFC 5321 §4.5.3.1); behind it stands a value nobody reads.
MAX_LINE_LENGTH: Final = 4096
# What a person can read in one go; the rest is counted.
MAX_REPORTED_MISTAKES: Final = 20
# A binary file would give millions; by then nobody needs to know how many.
MAX_COUNTED_MISTAKES: Final = 1000


class Fold(msgspec.Struct, frozen=True, kw_only=True):
    """How the primary reads a local part.

    case: "lower" compares without regard to case, "preserve" does not.
    delimiters: any of these characters begins a subaddress; "" means none does.
    dots: "drop" where dots before the first delimiter mean nothing.
    """

    case: Literal["lower", "preserve"] = "lower"
    delimiters: str = "+"
    dots: Literal["keep", "drop"] = "keep"


def fold(content: str, how: Fold, *, cut: bool) -> str:
    """Bring the content of a local part (unquoted) to its canonical text.

    cut: drop the subaddress, which begins at the first delimiter that is not
    at position 0. The result may be empty: then nobody is meant.
    """
    text = content if content.isascii() else unicodedata.normalize("NFC", content)
    if how.case == "lower":
        text = text.lower()
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
    end = _find_delimiter(text, how.delimiters)
    if how.dots == "drop":
        text = text[:end].replace(".", "") + ("" if cut else text[end:])
    elif cut:
        text = text[:end]
    return text


def fold_case(content: str, how: Fold) -> str:
    """The first step of `fold` alone: what the rules of a roster are matched against."""
    text = unicodedata.normalize("NFC", content)
    return unicodedata.normalize("NFC", text.lower()) if how.case == "lower" else text


def fold_both(content: str, how: Fold) -> tuple[str, str]:
    """Give the texts of a look-up in their order: subaddress kept, then cut."""
    kept = fold(content, how, cut=False)
    for delimiter in how.delimiters:
        if delimiter in kept:
            return kept, fold(content, how, cut=True)
    return kept, kept


def _find_delimiter(text: str, delimiters: str) -> int:
    """Where the subaddress begins; the length of `text` when there is none."""
    first = len(text)
    for delimiter in delimiters:
        found = text.find(delimiter, 1)
        if 0 < found < first:
            first = found
    return first


def make_digester(key: bytes) -> Callable[[str], bytes]:
    """Make the function that turns canonical text into 16 octets: BLAKE2b under `key` (16..64).

    Lone surrogates are taken as they are: a look-up never fails.
    """
    keyed = hashlib.blake2b(key=key, digest_size=DIGEST_BYTES)

    def digest(text: str) -> bytes:
        state = keyed.copy()  # a third cheaper than keying anew
        state.update(text.encode("utf-8", "surrogatepass"))
        return state.digest()

    return digest


class Mistake(msgspec.Struct, frozen=True):
    """What is wrong in one line; `line` counts from 1, 0 means the file as a whole."""

    line: int
    text: str


_OPTION = re.compile(r"%[ \t]*([A-Za-z_]+)[ \t]*=[ \t]*(.*)")
_QUOTED_WORD = re.compile(r'("(?:[^"\\]|\\.)*"(?:@[^ \t]*)?)(?:[ \t]+(.*))?')
_REGEX_TABLE = re.compile(r"!?/.*/[imx]*")
_INVISIBLE = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f]")
_NOT_DELIMITERS = re.compile(r'[^!-~]|[A-Za-z0-9."\\@]')


class RecipientFile:
    """Reads one file, line by line, in constant memory.

    Iterate `read_lines` to its end; then `mistakes` says whether what it gave
    may be used. `fold` is settled before the first recipient is given.
    entries, skipped: recipients of this domain (repeats included), lines for others.
    """

    def __init__(self, domain: str, *, folded: bool = True) -> None:
        """domain: lower-case A-labels. folded: False gives contents as the file spells
        them, and leaves it to the caller what a file means that is for other domains only.
        """
        self.domain = domain
        self._folded = folded
        self.fold = Fold()
        self.catch_all = False
        self.entries = 0
        self.skipped = 0
        self.mistakes: list[Mistake] = []
        self.mistake_count = 0
        self._options_seen: set[str] = set()
        self._line = 0
        # The plain case, in one match: a short ASCII address of this domain, maybe a value.
        self._plain = re.compile(
            r"([A-Za-z0-9_][A-Za-z0-9_.+=-]{0,63})"
            rf"@(?i:{re.escape(domain)})([ \t][^\r]{{0,999}})?\r?\Z"
        )

    def read_lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Give the canonical text of every recipient.

        lines: without their LF; octets that are not UTF-8 as lone surrogates.
        Stops early after MAX_COUNTED_MISTAKES.
        """
        plain = self._plain.match
        wants_value = False  # the line above was an address without a value
        for line in lines:
            self._line += 1
            match = plain(line)
            if match is not None:
                content: str | None = match[1]
                wants_value = match[2] is None
            else:
                content, wants_value = self._read_slowly(line, wants_value)
                if self.mistake_count >= MAX_COUNTED_MISTAKES:
                    break
            if content is not None:
                text = fold(content, self.fold, cut=False) if self._folded else content
                if not text:
                    self.report("nothing is left of this local part without its dots")
                    continue
                self.entries += 1
                yield text
        nobody = not self.entries and not self.catch_all
        if self._folded and self.skipped and nobody and not self.mistake_count:
            self._line = 0
            self.report(
                f"no line is for {self.domain}, {self.skipped} for other domains: the wrong file?"
            )

    @property
    def has_options(self) -> bool:
        """True when the file says itself how local parts are read."""
        return bool(self._options_seen)

    def report(self, text: str, *, line: int | None = None) -> None:
        """Note a mistake in the present line, or in `line`."""
        self.mistake_count += 1
        if len(self.mistakes) < MAX_REPORTED_MISTAKES:
            self.mistakes.append(Mistake(self._line if line is None else line, text))

    def describe_mistakes(self, path: str) -> list[str]:
        """Write the mistakes as "path:line: text", and how many more there are."""
        lines = [
            f"{path}:{mistake.line}: {mistake.text}" if mistake.line else f"{path}: {mistake.text}"
            for mistake in self.mistakes
        ]
        more = self.mistake_count - len(self.mistakes)
        if more:
            at_least = "at least " if self.mistake_count >= MAX_COUNTED_MISTAKES else ""
            lines.append(f"{path}: and {at_least}{more} more mistakes")
        return lines

    def _read_slowly(self, line: str, wants_value: bool) -> tuple[str | None, bool]:
        """Read any line. Returns its recipient, if any, and whether a value may follow below."""
        if self._line == 1:
            line = line.removeprefix("\ufeff")
        line = line.removesuffix("\r")
        bare = line.strip(" \t")
        if not bare or bare.startswith("#"):
            return None, wants_value
        if len(line) > MAX_LINE_LENGTH:
            self.report(f"longer than {MAX_LINE_LENGTH} characters")
            return None, False
        if "\r" in line:
            self.report("a carriage return within the line: lines end with LF or CR LF")
            return None, False
        if line[0] in " \t":
            # Postfix: white space at the start continues the line above. A value there is
            # ignored like any; a recipient there would be lost without a word.
            if not (wants_value and "@" not in bare):
                self.report("white space before the recipient")
            return None, False
        if line.startswith("%"):
            self._read_option(line)
            return None, False
        return self._read_recipient(line)

    def _read_option(self, line: str) -> None:
        match = _OPTION.fullmatch(line.rstrip(" \t"))
        if match is None:
            self.report('an option reads "% name = value"')
            return
        name, value = match[1], match[2]
        if self.entries or self.catch_all:
            self.report(f"option {name!r} must stand above the first recipient")
        elif name in self._options_seen:
            self.report(f"option {name!r} is given twice")
        elif name == "delimiters" and not _NOT_DELIMITERS.search(value):
            self.fold = msgspec.structs.replace(self.fold, delimiters="".join(dict.fromkeys(value)))
        elif name == "delimiters":
            self.report(
                'delimiters are printable ASCII, but no letters, digits, . " \\ @ or blanks'
            )
        elif name == "case" and value in ("lower", "preserve"):
            self.fold = msgspec.structs.replace(self.fold, case=value)
        elif name == "case":
            self.report(f"case is lower or preserve, not {value[:40]!r}")
        elif name == "dots" and value in ("keep", "drop"):
            self.fold = msgspec.structs.replace(self.fold, dots=value)
        elif name == "dots":
            self.report(f"dots is keep or drop, not {value[:40]!r}")
        else:
            self.report(f"unknown option {name[:40]!r}: there are case, delimiters and dots")
        self._options_seen.add(name)

    def _read_recipient(self, line: str) -> tuple[str | None, bool]:
        quoted = _QUOTED_WORD.fullmatch(line)
        if quoted is not None:
            word, value = quoted[1], quoted[2]
        else:
            word, _, value = line.replace("\t", " ").partition(" ")
        shown = ascii(word if len(word) <= 60 else word[:60] + "…")[1:-1]
        if any("\ud800" <= character <= "\udfff" for character in word):
            self.report("not UTF-8")
            return None, False
        if _REGEX_TABLE.fullmatch(word):
            self.report("this is a line of a regular expression table; only addresses are read")
            return None, False
        local, at, domain = word.rpartition("@")
        if not at or word.endswith('"'):  # a quoted local part may hold an "@" itself
            local, at, domain = word, "", self.domain
        if at and not local:
            self._read_catch_all(domain)
            return None, not value
        try:
            content = unquote_local_part(local)
            name = domain.lower() if domain.startswith("[") else normalize_domain(domain)
        except AddressError:
            self.report(f"not an address or local part: {shown}")
            return None, False
        if len(content.encode()) > MAX_LOCAL_OCTETS:
            self.report(f"local part over {MAX_LOCAL_OCTETS} octets: {shown}")
        elif _INVISIBLE.search(content):
            self.report(f"an invisible character in the local part: {shown}")
        elif name != self.domain:
            self.skipped += 1
        elif local == "*":
            self.report(f"for a catch-all write @{self.domain}")
        elif not at and local.lower() == self.domain:
            self.report(f"a domain, not a recipient; for a catch-all write @{self.domain}")
        else:
            return content, bool(at) and not value
        return None, bool(at) and not value

    def _read_catch_all(self, domain: str) -> None:
        try:
            name = normalize_domain(domain)
        except AddressError:
            self.report("not a domain behind the @")
            return
        if name == self.domain:
            self.catch_all = True
        else:
            self.skipped += 1

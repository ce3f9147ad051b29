"""Keeps the recipient lists current: `Publisher` makes them, `Directories` reads them.

The publisher runs in the control process only. It watches the text files of
all domains; one that changed is read once two looks in a row found it the same,
so that a copy still under way is not taken for the whole. A file with a mistake
changes nothing: the list of before stays in force, also across a restart, and
the mistakes are reported once for each state of the file.

Directories run in each worker, map every domain to its list in force and swap a
replaced one whole. A domain without a list finds everything UNKNOWN, which is
never a refusal.

They meet in the index files alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from posthouse import observe
from posthouse.domain.finding import Answer, Finding
from posthouse.errors import ConfigError, StorageError
from posthouse.ports_recipients import (
    Fingerprint,
    RecipientDirectory,
    RecipientListFacts,
    RecipientLists,
)

LOOK_EVERY_SECONDS: Final = 1.0
# After a failure of our own (disk full), so many looks pass before the next attempt.
_LOOKS_TO_PAUSE: Final = 60
# A file that looks like half of one is taken when so many looks found it the same.
_LOOKS_TO_TRUST: Final = 30

Facts = Mapping[str, str | int | bool]
Wait = Callable[[float], Awaitable[object]]


class _Source:
    """What the publisher knows of one domain's text file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.settled: Fingerprint | None = None  # the state that was dealt with …
        self.ever = False  # … if any was
        self.seen: Fingerprint | None = None  # at the last look
        self.pause = 0
        self.quiet_looks = 0
        self.told_half: Fingerprint | None = None
        self.problem = ""
        self.in_force: RecipientListFacts | None = None

    def put_in_force(self, facts: RecipientListFacts) -> None:
        self.settled, self.ever, self.pause = facts.source_version, True, 0
        self.in_force = facts
        nobody = not facts.entries and not facts.catch_all
        self.problem = f"{self.path} names nobody: only mail to postmaster is taken" * nobody


class Publisher:
    """Makes the index of every domain from its text file. One per node."""

    def __init__(
        self,
        lists: RecipientLists,
        sources: Mapping[str, str],
        *,
        now_us: Callable[[], int],
        wait: Wait = asyncio.sleep,
    ) -> None:
        """sources: domain (lower-case A-labels) → path of its text file."""
        self._lists = lists
        self._now_us = now_us
        self._wait = wait
        self._sources: dict[str, _Source] = {}
        self._busy = asyncio.Lock()
        self.set_sources(sources)

    def set_sources(self, sources: Mapping[str, str]) -> None:
        """Watch these files from now on; `refresh` deals with the new ones at once."""
        kept = self._sources
        self._sources = {
            domain: kept[domain] if domain in kept and kept[domain].path == path else _Source(path)
            for domain, path in sources.items()
        }

    async def refresh(self) -> None:
        """Publish everything that is new or has changed, without waiting for quiet.

        Lists of domains that are no longer watched are taken out of force.
        Call it before the node reports itself ready, and on SIGHUP.
        """
        async with self._busy:
            try:
                self._lists.keep_only(self._sources.keys())
            except StorageError as error:
                observe.trouble("recipients", "old lists stay in force", error)
            for domain, source in list(self._sources.items()):
                version = self._lists.get_source_version(source.path)
                if not source.ever:
                    await self._adopt(domain, source, version)
                if not source.ever or version != source.settled or source.pause:
                    await self._publish(domain, source, version)
                source.seen = version

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await self._wait(LOOK_EVERY_SECONDS)
            async with self._busy:
                for domain, source in list(self._sources.items()):
                    await self._look(domain, source)

    async def _look(self, domain: str, source: _Source) -> None:
        version = self._lists.get_source_version(source.path)
        quiet = version == source.seen
        source.seen = version
        source.quiet_looks = source.quiet_looks + 1 if quiet else 0
        if source.pause:
            source.pause -= 1
        elif quiet and self._looks_half(domain, source, version):
            return
        elif quiet and (not source.ever or version != source.settled):
            await self._publish(domain, source, version)

    def _looks_half(self, domain: str, source: _Source, version: Fingerprint | None) -> bool:
        """Tell whether to wait because a slow copy may be under way: it ends within a line, or
        has less than half of what is in force.
        """
        old = source.in_force
        if (
            version is None
            or old is None
            or version == source.settled
            or source.quiet_looks >= _LOOKS_TO_TRUST
        ):
            return False
        shrank = 0 < version.size_bytes * 2 < old.source_version.size_bytes
        if not shrank and self._lists.ends_with_line(source.path):
            return False
        if source.told_half != version:
            source.told_half = version
            observe.note(
                "recipients",
                f"{domain}: {source.path} looks like half a copy ("
                + ("much smaller than before" if shrank else "no line end at its end")
                + f"); taken when unchanged for {_LOOKS_TO_TRUST} s, or at once on reload",
            )
        return True

    async def _adopt(self, domain: str, source: _Source, version: Fingerprint | None) -> None:
        """Keep the list of an earlier run if it is undamaged; it is current if its source is."""
        facts = await asyncio.to_thread(self._lists.verified_facts, domain)
        if facts is None:
            return
        source.in_force = facts
        if facts.source == source.path and facts.source_version == version:
            source.put_in_force(facts)
            self._lists.set_problem(domain, source.problem)

    async def _publish(self, domain: str, source: _Source, version: Fingerprint | None) -> None:
        old = source.in_force
        try:
            facts = await asyncio.to_thread(
                self._lists.publish,
                domain,
                source.path,
                now_us=self._now_us(),
                refuse_empty=old is not None and (old.entries > 0 or old.catch_all),
            )
        except ConfigError as error:
            self._report(domain, source, error.mistakes)
            source.settled, source.ever, source.pause = version, True, 0
        except StorageError as error:
            self._report(domain, source, [error.detail])
            source.pause = _LOOKS_TO_PAUSE
        else:
            if facts is None:  # written to meanwhile: the next quiet look takes it up
                source.ever = False
                return
            source.put_in_force(facts)
            self._lists.set_problem(domain, source.problem)
            observe.note(
                "recipients",
                f"{domain}: {facts.entries} recipients from {facts.source}"
                + (", catch-all" if facts.catch_all else "")
                + (f", {facts.skipped} lines for other domains" if facts.skipped else ""),
            )
            if source.problem:
                observe.alert("recipients", f"{domain}: {source.problem}", domain=domain)

    def _report(self, domain: str, source: _Source, mistakes: list[str]) -> None:
        problem = "; ".join(mistakes)
        if problem == source.problem:
            return
        source.problem = problem
        self._lists.set_problem(domain, problem)
        old = source.in_force
        consequence = (
            "no list yet, so nobody is known"
            if old is None
            else f"the list of before ({old.entries} recipients) stays in force"
        )
        for line in (*mistakes, consequence):
            observe.alert("recipients", f"{domain}: {line}", domain=domain)

    def describe(self) -> Mapping[str, Facts]:
        """For `status`: by domain its source, entries and what is wrong with the file now."""
        return {
            domain: {
                "source": source.path,
                "entries": source.in_force.entries if source.in_force else 0,
                "catch_all": bool(source.in_force and source.in_force.catch_all),
                "problem": source.problem,
            }
            for domain, source in self._sources.items()
        }


_UNKNOWN: Final = Answer(finding=Finding.UNKNOWN)


class _NoList:
    """Stands for a domain without a list."""

    def find(self, local_part: str, network: str = "") -> Answer:  # noqa: ARG002 (the port's)
        """Nothing is known of anybody."""
        return _UNKNOWN

    def describe(self) -> Facts:
        """For `status`."""
        return {"source": "", "entries": 0, "loaded_at": "", "problem": "no list loaded"}


_NO_LIST: Final = _NoList()


class Directories:
    """The lists in force of all domains, as one worker sees them."""

    def __init__(
        self,
        lists: RecipientLists,
        domains: Iterable[str],
        *,
        table: dict[str, RecipientDirectory] | None = None,
        wait: Wait = asyncio.sleep,
    ) -> None:
        """Load what there is. domains: lower-case A-labels.

        table: where look-ups find the directory of a domain; others may put theirs there.
        """
        self._lists = lists
        self._wait = wait
        self._domains = tuple(domains)
        self._loaded: dict[str, RecipientDirectory] = {} if table is None else table
        self._versions: dict[str, Fingerprint | None] = {}
        self._directory_version: Fingerprint | None = None
        self.refresh()

    def find(self, domain: str, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        """Look up the content of a local part. Never raises; UNKNOWN without a list."""
        return self._loaded.get(domain, _NO_LIST).find(local_part, network)

    def get(self, domain: str) -> RecipientDirectory:
        """The list in force now. Ask again for each look-up: this one is never swapped."""
        return self._loaded.get(domain, _NO_LIST)

    def set_domains(self, domains: Iterable[str]) -> None:
        """Serve these domains from now on."""
        former, self._domains = self._domains, tuple(domains)
        for domain in set(former).difference(self._domains):
            if domain in self._versions:
                self._loaded.pop(domain, None)
        self._versions = {d: self._versions[d] for d in self._domains if d in self._versions}
        self.refresh()

    def refresh(self) -> None:
        """Take up every list that was replaced or taken out of force, at once.

        One that is damaged leaves the loaded one in force.
        """
        for domain in self._domains:
            version = self._lists.get_version(domain)
            if version == self._versions.get(domain):
                continue
            self._versions[domain] = version
            if version is None:
                self._loaded.pop(domain, None)
                continue
            directory = self._lists.open(domain)
            if directory is not None:
                self._loaded[domain] = directory
            else:
                observe.alert("recipients", f"{domain}: its index is damaged", domain=domain)

    async def run(self) -> None:
        """Look again and again, for ever. An idle look costs one stat, whatever the domains."""
        again = False
        while True:
            await self._wait(LOOK_EVERY_SECONDS)
            version = self._lists.get_directory_version()
            changed = version != self._directory_version
            if changed or again:  # twice: a second rename may fall into the same clock tick
                self._directory_version = version
                self.refresh()
            again = changed

    def describe(self) -> Mapping[str, Facts]:
        """For `status`, by domain: the list in force here, and what is wrong with its source."""
        described: dict[str, Facts] = {}
        for domain in self._domains:
            facts = dict(self.get(domain).describe())
            facts["problem"] = self._lists.get_problem(domain) or facts["problem"]
            described[domain] = facts
        return described

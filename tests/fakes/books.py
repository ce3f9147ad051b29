"""Both books of agreements as plain dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from posthouse.domain.agreement import AgreementView, State
from posthouse.domain.recipients import Fold, fold_both
from posthouse.ports_agreements import (
    AgreementQuery,
    ForwarderChange,
    ForwarderEntry,
    FoundAgreement,
    Grant,
    GrantState,
    Report,
    Sighting,
)

UNTOLD = Fold(delimiters="")
Entries = list[ForwarderEntry]


class MemoryForwarderBook:
    """`entries` and `published` (what workers see) are open to the tests."""

    def __init__(self) -> None:
        self.entries: dict[str, ForwarderEntry] = {}
        self.published: dict[str, ForwarderEntry] = {}
        self.folds: dict[str, Fold] = {}
        self.published_folds: dict[str, Fold] = {}
        self._asked: dict[str, int] = {}
        self._taken: set[str] = set()

    # ------------------------------------------------------------------ the port

    async def change(
        self, canonicals: Sequence[str], decide: ForwarderChange
    ) -> Sequence[ForwarderEntry]:
        fresh = dict(self.entries)
        given = []
        for canonical in canonicals:
            entry = decide(canonical, fresh.get(canonical))
            if entry is not None:
                fresh[entry.canonical] = entry
                given.append(entry)
        self._keep(fresh)
        return given

    async def take(
        self,
        reports: Sequence[Report],
        decide: Callable[[Sighting, ForwarderEntry | None], ForwarderEntry | None],
    ) -> Sequence[ForwarderEntry]:
        fresh, taken, given = dict(self.entries), set(self._taken), {}
        for report in reports:
            if report.name in taken:
                continue
            taken.add(report.name)
            for sighting in report.sightings:
                entry = decide(sighting, fresh.get(sighting.canonical))
                if entry is not None:
                    fresh[entry.canonical] = given[entry.canonical] = entry
        self._keep(fresh)
        self._taken = taken
        return list(given.values())

    async def find(self, canonical: str) -> ForwarderEntry | None:
        return self.entries.get(canonical)

    async def find_recipe(self, recipe_id: str) -> ForwarderEntry | None:
        return self._one(lambda entry: entry.recipe_id == recipe_id != "")

    async def find_agreement(self, agreement_id: str) -> ForwarderEntry | None:
        return self._one(lambda entry: entry.agreement_id == agreement_id != "")

    async def due(self, domain: str, now_us: int, limit: int) -> Sequence[ForwarderEntry]:
        due = [e for e in self._waiting(ended=False) if e.domain == domain and _due(e) <= now_us]
        return due[:limit]

    async def next_due(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for entry in self._waiting(ended=False):
            found.setdefault(entry.domain, _due(entry))
        return found

    async def ended(self, limit: int) -> Sequence[ForwarderEntry]:
        return self._waiting(ended=True)[:limit]

    async def forget_ended(self, now_us: int, before_us: int) -> int:
        over = [
            canonical
            for canonical, entry in self.entries.items()
            if entry.standing.state is State.ENDED
            and entry.due_us is None
            and entry.end is not None
            and (
                not entry.end.at_us <= now_us < entry.end.until_us
                if entry.end.until_us
                else entry.end.at_us < before_us
            )
        ]
        self.entries = {key: self.entries[key] for key in self.entries if key not in set(over)}
        return len(over)

    async def bring_forward(self, now_us: int, behind_us: int) -> int:
        far = [e for e in self.entries.values() if e.due_us is not None and e.due_us > behind_us]
        near = {e.canonical: msgspec.structs.replace(e, due_us=now_us) for e in far}
        self._keep(self.entries | near)
        return len(far)

    async def list(
        self, query: AgreementQuery, *, after: str, limit: int
    ) -> Sequence[ForwarderEntry]:
        return [
            self.entries[canonical]
            for canonical in sorted(self.entries)
            if canonical > after
            and query.domain in ("", self.entries[canonical].domain)
            and query.canonical in ("", canonical)
            and query.state in (None, self.entries[canonical].standing.state)
        ][:limit]

    async def behind(self, domain: str, serial: int, limit: int) -> Sequence[ForwarderEntry]:
        found = [
            entry
            for canonical, entry in self.entries.items()
            if entry.domain == domain and self._asked[canonical] < serial
        ]
        return sorted(found, key=lambda entry: self._asked[entry.canonical])[:limit]

    async def note_asked(self, canonicals: Iterable[str], serial: int) -> None:
        for canonical in canonicals:
            self._asked[canonical] = max(self._asked[canonical], serial)

    async def set_folds(self, folds: Mapping[str, Fold]) -> None:
        self.folds = dict(folds)

    async def counts(self) -> Mapping[str, Mapping[State, int]]:
        found: dict[str, dict[State, int]] = {}
        for entry in self.entries.values():
            states = found.setdefault(entry.domain, {})
            states[entry.standing.state] = states.get(entry.standing.state, 0) + 1
        return found

    async def publish(self) -> None:
        self.published = dict(self.entries)
        self.published_folds = dict(self.folds)

    # ------------------------------------------------------------------

    def _waiting(self, *, ended: bool) -> Entries:
        return sorted(
            (
                entry
                for entry in self.entries.values()
                if entry.due_us is not None and (entry.standing.state is State.ENDED) is ended
            ),
            key=_due,
        )

    def _keep(self, fresh: dict[str, ForwarderEntry]) -> None:
        self.entries = fresh
        for canonical, entry in fresh.items():
            self._asked[canonical] = max(self._asked.get(canonical, 0), entry.serial)

    def _one(self, wanted: Callable[[ForwarderEntry], bool]) -> ForwarderEntry | None:
        return next((entry for entry in self.entries.values() if wanted(entry)), None)


def _due(entry: ForwarderEntry) -> int:
    return entry.due_us or 0


class MemoryAgreements:
    """What workers see of a book, once it was published."""

    def __init__(self, book: MemoryForwarderBook) -> None:
        self._book = book

    def covers(self, domain: str) -> bool:
        return any(entry.domain == domain for entry in self._book.published.values())

    def find(self, canonical: str) -> AgreementView | None:
        entry = self._book.published.get(canonical)
        return None if entry is None else AgreementView(entry.standing, entry.serial, entry.end)

    def look_up(self, domain: str, local: str) -> FoundAgreement | None:
        for text in fold_both(local, self._book.published_folds.get(domain, UNTOLD)):
            view = self.find(f"{text}@{domain}")
            if view is not None:
                return FoundAgreement(f"{text}@{domain}", view)
        return None


class MemorySightings:
    """What was noted, in order."""

    def __init__(self) -> None:
        self.messages: list[Sighting] = []
        self.wanted: list[Sighting] = []
        self.refused_logins: list[tuple[str, str]] = []

    def note_message(self, sighting: Sighting) -> None:
        self.messages.append(sighting)

    def note_wanted(self, sighting: Sighting) -> None:
        self.wanted.append(sighting)

    def note_refused_login(self, agreement_id: str, why: str) -> None:
        self.refused_logins.append((agreement_id, why))


class MemoryGranterBook:
    """`grants` is open to the tests."""

    def __init__(self) -> None:
        self.grants: dict[str, Grant] = {}

    async def settle(
        self,
        forwarder_id: str,
        recipe_ids: Sequence[str],
        decide: Callable[[str, Grant | None], Grant | None],
    ) -> Sequence[Grant]:
        fresh, given = dict(self.grants), []
        for recipe_id in recipe_ids:
            known = next(
                (
                    grant
                    for grant in fresh.values()
                    if (grant.forwarder_id, grant.recipe_id) == (forwarder_id, recipe_id)
                ),
                None,
            )
            grant = decide(recipe_id, known)
            if grant is not None:
                fresh[grant.agreement_id] = grant
                given.append(grant)
        self.grants = fresh
        return given

    async def change(
        self, agreement_id: str, decide: Callable[[Grant], Grant | None]
    ) -> Grant | None:
        known = self.grants.get(agreement_id)
        grant = None if known is None else decide(known)
        if grant is not None:
            self.grants = {**self.grants, agreement_id: grant}
        return grant

    async def find(self, agreement_id: str) -> Grant | None:
        return self.grants.get(agreement_id)

    async def list(
        self,
        *,
        mailbox: str = "",
        domain: str = "",
        forwarder_id: str = "",
        state: GrantState | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> Sequence[Grant]:
        wanted = {"mailbox": mailbox, "domain": domain, "forwarder_id": forwarder_id}
        return [
            grant
            for agreement_id, grant in sorted(self.grants.items())
            if agreement_id > after
            and state in (None, grant.state)
            and all(getattr(grant, name) == value for name, value in wanted.items() if value)
        ][:limit]

    async def forget_ended(self, before_us: int) -> int:
        kept = {
            agreement_id: grant
            for agreement_id, grant in self.grants.items()
            if grant.state is not GrantState.ENDED or grant.changed_us >= before_us
        }
        count = len(self.grants) - len(kept)
        self.grants = kept
        return count

    async def counts(self) -> Mapping[str, Mapping[GrantState, int]]:
        found: dict[str, dict[GrantState, int]] = {}
        for grant in self.grants.values():
            states = found.setdefault(grant.domain, {})
            states[grant.state] = states.get(grant.state, 0) + 1
        return found


class MemoryReports:
    """Reports waiting for the control process."""

    def __init__(self) -> None:
        self.waiting: list[Report] = []

    def put(self, *sightings: Sighting, name: str = "") -> None:
        name = name or f"r{len(self.waiting)}-{id(sightings)}"
        self.waiting.append(Report(name=name, sightings=sightings))

    def read(self, limit: int) -> Sequence[Report]:
        return self.waiting[:limit]

    def forget(self, reports: Iterable[Report]) -> None:
        names = {report.name for report in reports}
        self.waiting = [report for report in self.waiting if report.name not in names]


def touched(entry: ForwarderEntry, **members: object) -> ForwarderEntry:
    """The entry with some members replaced."""
    return msgspec.structs.replace(entry, **members)

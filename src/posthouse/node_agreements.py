"""Agreements in a worker: names the engines and wires them; and who is paired for what.

A worker answers RCPT from the snapshot of the forwarder book, hands over what it
sees, and reads the passwords that mail to the primary goes under. The book is
kept by the control process (node_forwarder).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from posthouse import observe
from posthouse.config_pairs import load_own_pairing, load_primary_pairing
from posthouse.config_schema import Config
from posthouse.errors import ConfigError
from posthouse.node_process import Process, clock_us
from posthouse.proto.pairing import OwnPairing, PrimaryPairing
from posthouse.services.agreement_verdicts import AgreementVerdicts, Roster
from posthouse.services.reception import Reception
from posthouse.storage.agreement_secrets import BookSecrets
from posthouse.storage.agreement_snapshot import SnapshotReader
from posthouse.storage.forwarder_book import book_path, snapshot_path
from posthouse.storage.sightings import SightingsOutbox

LOOK_EVERY_SECONDS: Final = 0.5


def agreements_directory(data_dir: Path) -> Path:
    """Where both books are kept."""
    return data_dir / "agreements"


def sightings_directory(data_dir: Path) -> Path:
    """Where workers leave what they learned."""
    return agreements_directory(data_dir) / "seen"


class PairedGranter(msgspec.Struct, frozen=True):
    """One [[primary]]: what it gave us, and what we keep of what we gave it."""

    theirs: PrimaryPairing
    own: OwnPairing


def read_granters(config: Config) -> list[PairedGranter]:
    """Every primary (or more preferred backup) whose files can be read; the others are told of."""
    found: list[PairedGranter] = []
    for primary in config.primaries:
        try:
            found.append(
                PairedGranter(
                    load_primary_pairing(primary.pairing), load_own_pairing(primary.own, "backup")
                )
            )
        except ConfigError as error:
            observe.alert("agreements", "; ".join(error.mistakes))
    return found


def find_granters(config: Config, granters: list[PairedGranter]) -> dict[str, list[PairedGranter]]:
    """By domain whom to ask, the owner first. Domains with a text file negotiate nothing.

    The owner is the primary whose own roster it is, else the first that has the domain. Who
    names another signing key than the owner's speaks for somebody else, and is told nothing.
    """
    found: dict[str, list[PairedGranter]] = {}
    for domain in config.domains:
        paired = [one for one in granters if domain.name in one.theirs.domains]
        if domain.recipients is None and paired:
            origin = domain.roster
            is_owner = origin is not None and origin.kind == "primary" and origin.pairing is None
            owner = origin.place if origin is not None and is_owner else ""
            first, *others = sorted(paired, key=lambda one: one.theirs.party != owner)
            key = first.theirs.public_key
            found[domain.name] = [first, *(one for one in others if one.theirs.public_key == key)]
    return found


def find_owners(config: Config, granters: list[PairedGranter]) -> dict[str, str]:
    """By domain the party of its primary."""
    return {
        domain: paired[0].theirs.party for domain, paired in find_granters(config, granters).items()
    }


class WorkerAgreements:
    """Everything a worker needs of agreements. `secrets` is for its relays."""

    def __init__(
        self, config: Config, *, index: int, find_roster: Callable[[str], Roster | None]
    ) -> None:
        directory = agreements_directory(config.data_dir)
        owners = find_owners(config, read_granters(config))
        self._reader = SnapshotReader(snapshot_path(directory))
        self._outbox = SightingsOutbox(
            sightings_directory(config.data_dir), source=str(index), clock_us=clock_us
        )
        self.secrets = BookSecrets(book_path(directory), self._reader, self._outbox, owners)
        self._reception: Reception | None = None
        self._owners = owners
        self._verdicts = AgreementVerdicts(
            owners,
            book=self._reader,
            sightings=self._outbox,
            find_roster=find_roster,
            disclose_551=config.smtp.disclose_551,
            clock_us=clock_us,
        )

    def attach(self, reception: Reception, process: Process[Config]) -> None:
        """Take part in the verdicts from now on."""
        self._reception = reception
        reception.agreements = self._verdicts if self._owners else None
        reception.after_commit.append(self._verdicts.note_accepted)
        process.keep(self._look(), "watching agreements")
        process.keep(self._outbox.run(), "handing over what was seen")

    def reload(self, config: Config) -> None:
        """Put a new configuration in force."""
        owners = self._owners = find_owners(config, read_granters(config))
        self.secrets.owners = owners
        if self._reception is not None:  # a node that is not paired pays nothing
            self._reception.agreements = self._verdicts if owners else None
        self._verdicts.reload(owners, disclose_551=config.smtp.disclose_551)

    async def close(self) -> None:
        """Hand over what is left."""
        await self._outbox.hand_over()
        self.secrets.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            self._reader.refresh()

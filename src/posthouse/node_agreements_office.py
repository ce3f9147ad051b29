"""The books of agreements for operators' commands, with and without a running process.

SQLite lets a command write beside the process that keeps the book; that process
notices within a second. As root a command first becomes the user who owns the
data, so that no file of root's is left behind.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from posthouse.config_pairs import load_backup_pairing, load_own_pairing
from posthouse.config_primary_schema import PrimaryConfig
from posthouse.config_schema import Config
from posthouse.domain.recipients import Fold, fold
from posthouse.errors import AddressError, ConfigError, PosthouseError
from posthouse.mail.address import Mailbox, parse_path
from posthouse.node_agreements import agreements_directory
from posthouse.node_pairs import Pairs, make_granter_settings
from posthouse.node_process import clock_us
from posthouse.node_user import become, find_owner
from posthouse.ports_agreements import Existence, ForwarderEntry, Grant
from posthouse.ports_https import Peer
from posthouse.services.granter import GranterSettings
from posthouse.services.granter_callbacks import GranterCallbacks
from posthouse.storage.agreement_snapshot import SnapshotReader
from posthouse.storage.forwarder_book import SqliteForwarderBook, snapshot_path
from posthouse.storage.granter_book import SqliteGranterBook, granter_book_path
from posthouse.transports.agreement_calls import PeerForwarders
from posthouse.transports.peers import HttpsPeer


class NoBook(PosthouseError):
    """There is no book of agreements yet."""


class _Nobody:
    """Commands never ask who exists."""

    async def find(self, domain: str, local: str) -> Existence:
        """Nobody can tell."""
        return Existence(exists=None, mailbox=f"{local}@{domain}")


class GranterOffice:
    """The granter's side: of a primary, or of a backup with backups behind it."""

    def __init__(
        self, book: SqliteGranterBook, callbacks: GranterCallbacks, folds: dict[str, Fold]
    ) -> None:
        self.book = book
        self.callbacks = callbacks
        self._folds = folds

    async def find(self, wanted: str) -> Sequence[Grant]:
        """By agreement-ID, or by address in any spelling. Raises ConfigError for neither."""
        if "@" not in wanted:
            grant = await self.book.find(wanted)
            return [grant] if grant is not None else []
        for text in self.texts(wanted):
            grants = await self.book.list(mailbox=text)
            if grants:
                return grants
        return []

    def texts(self, address: str) -> list[str]:
        """Canonical texts that an address may stand under, the likeliest first."""
        return list_texts(parse_address(address), self._folds)


class ForwarderOffice:
    """The forwarder's side."""

    def __init__(self, book: SqliteForwarderBook, pairs: Pairs, snapshot: SnapshotReader) -> None:
        self.book = book
        self.pairs = pairs
        self._snapshot = snapshot

    async def find(self, wanted: str) -> ForwarderEntry | None:
        """By agreement-ID, or by address in any spelling. Raises ConfigError for neither."""
        if "@" not in wanted:
            return await self.book.find_agreement(wanted)
        mailbox = parse_address(wanted)
        found = self._snapshot.look_up(mailbox.domain, mailbox.local)
        texts = [found.canonical] if found is not None else []
        for text in (*texts, *list_texts(mailbox, {})):
            entry = await self.book.find(text)
            if entry is not None:
                return entry
        return None


@asynccontextmanager
async def open_primary_office(config: PrimaryConfig) -> AsyncIterator[GranterOffice]:
    """The book beside a primary. Raises NoBook, ConfigError, StorageError."""
    directory = _enter(config.data_dir, granter_book_path)
    theirs = [(load_backup_pairing(one.pairing), one) for one in config.backups]
    peers: dict[str, Peer] = {
        pairing.party: HttpsPeer(
            pairing.party,
            pairing.base_url,
            token=pairing.token,
            spki_sha256=pairing.tls_spki_sha256,
            now_us=clock_us,
        )
        for pairing, _ in theirs
    }
    for _, one in theirs:
        load_own_pairing(one.own, "primary")
    settings = GranterSettings(
        party=config.party,
        completion_url=config.base_url + "v1/completion",
        forwarders={},
        blocking={domain.name: domain.policy.blocking == "allowed" for domain in config.domains},
    )
    async with _open_granter(directory, settings, peers) as (book, callbacks):
        yield GranterOffice(book, callbacks, {one.name: one.fold for one in config.domains})


@asynccontextmanager
async def open_backup_office(
    config: Config,
) -> AsyncIterator[tuple[ForwarderOffice, GranterOffice]]:
    """Both books of a backup. Raises NoBook, ConfigError, StorageError."""
    directory = _enter(config.data_dir, lambda place: place)
    pairs = Pairs(config)
    book = await SqliteForwarderBook.open(directory)
    settings = make_granter_settings(config, pairs.backups)
    try:
        async with _open_granter(directory, settings, pairs.forwarders) as (grants, callbacks):
            snapshot = SnapshotReader(snapshot_path(directory))
            yield ForwarderOffice(book, pairs, snapshot), GranterOffice(grants, callbacks, {})
    finally:
        await book.close()
        await pairs.close()


@asynccontextmanager
async def _open_granter(
    directory: Path, settings: GranterSettings, peers: dict[str, Peer]
) -> AsyncIterator[tuple[SqliteGranterBook, GranterCallbacks]]:
    book = await SqliteGranterBook.open(directory)
    callbacks = GranterCallbacks(
        settings,
        book=book,
        addresses=_Nobody(),
        calls=PeerForwarders(peers),
        mint=secrets.token_hex,
        clock_us=clock_us,
    )
    try:
        yield book, callbacks
    finally:
        await book.close()
        for peer in peers.values():
            await peer.close()


def _enter(data_dir: Path, needed: object) -> Path:
    """Become who owns the data. Raises NoBook."""
    directory = agreements_directory(data_dir)
    place = needed(directory) if callable(needed) else directory
    if not place.exists():
        raise NoBook(f"{place} does not exist: no agreement was ever asked for here")
    if os.geteuid() == 0:
        become(find_owner(directory))
    return directory


def parse_address(address: str) -> Mailbox:
    """Read an address as it stands in an envelope. Raises ConfigError."""
    try:
        mailbox = parse_path(address.encode("utf-8"), utf8=True)
    except (AddressError, UnicodeError) as error:
        raise ConfigError([f"{address}: not an address: {error}"]) from error
    if mailbox is None or not mailbox.domain:
        raise ConfigError([f"{address}: not an address"])
    return mailbox


def list_texts(mailbox: Mailbox, folds: dict[str, Fold]) -> list[str]:
    """Canonical texts of an address; as most primaries read it where nothing is known."""
    how = folds.get(mailbox.domain, Fold())
    texts = (
        fold(mailbox.local, how, cut=False),
        fold(mailbox.local, how, cut=True),
        mailbox.local,
    )
    return [f"{text}@{mailbox.domain}" for text in dict.fromkeys(filter(None, texts))]

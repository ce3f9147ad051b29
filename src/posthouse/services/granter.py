"""The granter: answers forwarders that ask for agreements and complete them (PROTOCOL.md §3).

Runs beside a primary, and in a backup that grants to a further backup. What it
answers is on record before it is said. Every mailbox that turns out not to
exist is logged with who asked, and both the asking and the not-existing are
limited: this is an oracle about addresses, for a party that was let in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from posthouse import observe
from posthouse.domain.agreement_passwords import hash_password, is_password
from posthouse.domain.allowance import Allowance
from posthouse.errors import AddressError, StorageError
from posthouse.log_sink import clean
from posthouse.mail.address import Mailbox, parse_path
from posthouse.mail.recipes import (
    AgreementRequest,
    Completion,
    Denial,
    Recipe,
    RecipeResult,
    Refusal,
    Status,
)
from posthouse.ports_agreements import AddressBook, Existence, Grant, GranterBook, GrantState
from posthouse.ports_postfix import AuthFinding, Backing
from posthouse.services import granter_moves as moves

MINUTE_US: Final = 60_000_000
HOUR_US: Final = 3_600_000_000
# PROTOCOL.md §3: at most 1,000 new requests a minute per domain.
NEW_A_MINUTE: Final = 1_000
# Answers `no_such_user` to one forwarder about one domain. An honest one asks about addresses
# that a roster vouched for, so it hears the word when somebody has just left.
UNKNOWN_AN_HOUR: Final = 600
PAGE: Final = 1_000


class ForwarderTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What was agreed with one backup when it was paired.

    domains: those it backs up. policy_base: its base_url, under which it may be called.
    ask: a person says yes to every agreement.
    """

    domains: frozenset[str]
    policy_base: str
    ask: bool = False


class GranterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """party: our name; completion_url: where forwarders complete; forwarders: by forwarder-ID.

    blocking: whether the owner of a domain lets its users block; a missing one does.
    """

    party: str
    completion_url: str
    forwarders: Mapping[str, ForwarderTerms]
    blocking: Mapping[str, bool] = {}


class _Refused(Exception):
    """Leaves the book's transaction: nothing of the request stays."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class _Asked(msgspec.Struct, frozen=True):
    recipe: Recipe
    served: bool
    found: Existence


class Granter:
    """Answers requests of forwarders; see also `GranterCallbacks`."""

    def __init__(
        self,
        settings: GranterSettings,
        *,
        book: GranterBook,
        addresses: AddressBook,
        lies_under: Callable[[str, str], bool],
        mint: Callable[[int], str],
        clock_us: Callable[[], int],
    ) -> None:
        """lies_under: (base_url, URL) → may it be called. mint: n random octets as hex."""
        self._settings = settings
        self._book = book
        self._addresses = addresses
        self._lies_under = lies_under
        self._mint = mint
        self._clock_us = clock_us
        self._fresh: dict[tuple[str, str], Allowance] = {}
        self._unknown: dict[tuple[str, str], Allowance] = {}
        self._policy_urls: dict[str, str] = {}  # by forwarder, as all its grants have them

    def reload(self, settings: GranterSettings) -> None:
        """Put new settings in force."""
        self._settings = settings

    # ------------------------------------------------------------------ POST v1/agreements

    async def request(
        self, party: str, asked: AgreementRequest
    ) -> Sequence[RecipeResult] | Refusal:
        """Answer one request of an authenticated party. Raises StorageError."""
        terms = self._settings.forwarders.get(party)
        if terms is None or asked.forwarder_id != party:
            return Refusal(Denial.FORBIDDEN, "not your forwarder_id")
        if not self._lies_under(terms.policy_base, asked.policy_negotiation_url):
            return Refusal(
                Denial.UNPROCESSABLE, "policy_negotiation_url does not lie under your base_url"
            )
        looked_up = {}
        for recipe in asked.recipes:
            looked_up[recipe.recipe_id] = await self._look_up(terms, recipe)
        results: dict[str, RecipeResult] = {}
        fresh: dict[str, int] = {}
        unknown: dict[str, int] = {}
        work = moves.Terms(
            forwarder_id=party, completion_url=self._settings.completion_url, ask=terms.ask
        )

        def decide(recipe_id: str, known: Grant | None) -> Grant | None:
            one = looked_up[recipe_id]
            if known is not None and moves.differs(known, one.recipe, one.found.mailbox):
                raise _Refused(
                    Refusal(Denial.CONFLICT, f"{recipe_id} is known with other contents")
                )
            if not one.served:
                results[recipe_id] = RecipeResult(recipe_id=recipe_id, status=Status.REFUSED)
                return None
            domain = one.found.mailbox.rpartition("@")[2]
            if known is None:
                fresh[domain] = fresh.get(domain, 0) + 1
            if one.found.exists is False:
                unknown[domain] = unknown.get(domain, 0) + 1
            grant, results[recipe_id] = moves.answer_request(
                known,
                moves.begin(
                    one.recipe,
                    one.found,
                    work,
                    asked.policy_negotiation_url,
                    f"a-{self._mint(16)}",
                ),
                one.found,
                work,
                one_time=self._mint(24),
                now_us=self._clock_us(),
            )
            return grant

        def decide_all(recipe_id: str, known: Grant | None) -> Grant | None:
            grant = decide(recipe_id, known)
            if recipe_id == asked.recipes[-1].recipe_id:
                self._spend_allowances(party, fresh, unknown)
            return grant

        try:
            await self._book.settle(party, list(looked_up), decide_all)
        except _Refused as error:
            observe.note("agreements", f"{party}: request refused: {error.refusal.detail}")
            return error.refusal
        self._log(party, looked_up, results)
        await self._follow_move(party, terms, asked.policy_negotiation_url)
        return [results[recipe.recipe_id] for recipe in asked.recipes]

    async def _follow_move(self, party: str, terms: ForwarderTerms, url: str) -> None:
        """A forwarder that moved names its new URL with its next request: for older grants too.

        Only those are changed that cannot be called any more, since they lie outside its base.
        """
        if self._policy_urls.get(party) == url:
            return
        after = ""
        while page := await self._book.list(forwarder_id=party, after=after, limit=PAGE):
            after = page[-1].agreement_id
            moved = [
                grant.recipe_id
                for grant in page
                if not self._lies_under(terms.policy_base, grant.policy_url)
            ]
            await self._book.settle(
                party,
                moved,
                lambda _, known: known and moves.note_url(known, url, now_us=self._clock_us()),
            )
        self._policy_urls[party] = url

    async def _look_up(self, terms: ForwarderTerms, recipe: Recipe) -> _Asked:
        mailbox = _parse(recipe.address)
        if mailbox is None:  # nobody can have such an address
            domain = recipe.address.rpartition("@")[2].lower()
            served = domain in terms.domains
            nobody = Existence(exists=False, mailbox=f"@{domain}")
            return _Asked(recipe, served, nobody)
        if mailbox.domain not in terms.domains:
            return _Asked(
                recipe, False, Existence(exists=None, mailbox=f"{mailbox.local}@{mailbox.domain}")
            )
        return _Asked(recipe, True, await self._addresses.find(mailbox.domain, mailbox.local))

    def _spend_allowances(
        self, party: str, fresh: Mapping[str, int], unknown: Mapping[str, int]
    ) -> None:
        """Runs at the end of the transaction, in the book's thread, where all decisions run."""
        now_us = self._clock_us()
        for domain, count in fresh.items():
            bucket = self._bucket(self._fresh, party, domain)
            if count > bucket.left(now_us):
                wait = bucket.wait_seconds(count, now_us)
                text = f"more than {NEW_A_MINUTE} new requests a minute for {domain}"
                raise _Refused(Refusal(Denial.TOO_MANY, text, wait))
        for domain in unknown:
            bucket = self._bucket(self._unknown, party, domain)
            if not bucket.left(now_us):
                text = f"too many unknown addresses of {domain}"
                raise _Refused(Refusal(Denial.TOO_MANY, text, bucket.wait_seconds(1, now_us)))
        for buckets, counts in ((self._fresh, fresh), (self._unknown, unknown)):
            for domain, count in counts.items():
                self._bucket(buckets, party, domain).take(count, now_us)

    def _bucket(
        self, buckets: dict[tuple[str, str], Allowance], party: str, domain: str
    ) -> Allowance:
        """Bounded: both come from a pairing."""
        known = buckets.get((party, domain))
        if known is None:
            limits = (
                (NEW_A_MINUTE, MINUTE_US) if buckets is self._fresh else (UNKNOWN_AN_HOUR, HOUR_US)
            )
            known = buckets[party, domain] = Allowance(*limits)
        return known

    def _log(
        self, party: str, asked: Mapping[str, _Asked], results: Mapping[str, RecipeResult]
    ) -> None:
        counts: dict[Status, int] = {}
        for recipe_id, result in results.items():
            counts[result.status] = counts.get(result.status, 0) + 1
            if result.status is Status.NO_SUCH_USER:
                address = clean(asked[recipe_id].recipe.address)
                observe.note("agreements", f"{party} asked for <{address}>: no such user")
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        observe.note("agreements", f"{party} asked for {len(results)} agreements: {told}")

    # ------------------------------------------------------------------ POST v1/completion

    async def complete(self, party: str, told: Completion) -> Refusal | None:
        """Answer one completion of an authenticated party; None: 204. Raises StorageError."""
        if told.forwarder_id != party:
            return Refusal(Denial.FORBIDDEN, "not your forwarder_id")
        known = await self._book.find(told.agreement_id)
        if known is None:
            return Refusal(Denial.NOT_FOUND, "no such agreement")
        exists: bool | None = None
        if told.terminate:
            local, _, domain = known.mailbox.rpartition("@")
            exists = (await self._addresses.find(domain, local)).exists
        refusals: list[Refusal | None] = []

        def decide(grant: Grant) -> Grant | None:
            kept, refusal = moves.answer_completion(grant, told, exists, now_us=self._clock_us())
            refusals.append(refusal)
            return kept

        changed = await self._book.change(told.agreement_id, decide)
        refusal = refusals[0]
        if refusal is not None:
            observe.note("agreements", f"{party}: {told.agreement_id}: {refusal.detail}")
        elif changed is not None and known.state is GrantState.GRANTED:
            await self._end_older(changed)
        return refusal

    async def _end_older(self, completed: Grant) -> None:
        """One agreement per mailbox: a forwarder that asks anew has lost the older ones."""
        for other in await self._book.list(
            mailbox=completed.mailbox, forwarder_id=completed.forwarder_id
        ):
            if other.agreement_id != completed.agreement_id and other.state not in moves.ENDED:
                await self._book.change(
                    other.agreement_id,
                    lambda grant: moves.move(grant, GrantState.ENDED, now_us=self._clock_us()),
                )

    # ------------------------------------------------------------------ SMTP AUTH

    async def check(self, agreement_id: str, password: str) -> AuthFinding:
        """Judge what was presented with SMTP AUTH (`ports_postfix.AgreementVerifier`)."""
        try:
            grant = await self._book.find(agreement_id)
        except StorageError as error:
            observe.trouble("agreements", "the book cannot be read", error)
            return AuthFinding.TEMPORARY
        shown = hash_password(agreement_id, password)
        if grant is None or grant.state in (*moves.ENDED, GrantState.REFUSED):
            is_password(shown, bytes(32))
            return AuthFinding.BAD
        if grant.forwarder_id not in self._settings.forwarders:
            return AuthFinding.BAD
        if is_password(grant.password, shown):
            return AuthFinding.GOOD
        return AuthFinding.EXPIRED if is_password(grant.one_time, shown) else AuthFinding.BAD

    async def find_backing(self, agreement_id: str) -> Backing | None:
        """Tell what an agreement is good for (`ports_postfix.AgreementBacking`)."""
        grant = await self._book.find(agreement_id)
        if grant is None or grant.state is not GrantState.AGREED:
            return None
        terms = self._settings.forwarders.get(grant.forwarder_id)
        if terms is None:
            return None
        return Backing(
            agreement_id=agreement_id,
            forwarder_id=grant.forwarder_id,
            mailbox=grant.mailbox,
            domains=terms.domains,
        )


def _parse(address: str) -> Mailbox | None:
    try:
        return parse_path(address.encode("utf-8"), utf8=True)
    except (AddressError, UnicodeError):
        return None

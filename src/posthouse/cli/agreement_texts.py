"""How agreements are shown to people and to programs. Secrets are never shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posthouse.cli.texts import tell_local, tell_size, tell_utc
from posthouse.domain.agreement import EndedBy
from posthouse.log_sink import clean
from posthouse.mail.recipes import Holder, tell_error
from posthouse.ports_agreements import ForwarderEntry, Grant


def _when(instant_us: int | None) -> str | None:
    return tell_utc(instant_us) if instant_us else None


# --------------------------------------------------------------------------- held


def entry_line(entry: ForwarderEntry) -> str:
    """One agreement on one line."""
    count = f"{entry.messages:,} message{'s' * (entry.messages != 1)}"
    note = f"  ({clean(entry.note)})" if entry.note else ""
    return (
        f"{clean(entry.canonical)}  {entry.standing.state.name.lower()}"
        f"  {entry.granter or '-'}  {count}{note}"
    )


def entry_document(entry: ForwarderEntry) -> dict[str, Any]:
    """One agreement for --json."""
    former, end = entry.standing.former, entry.end
    return {
        "address": entry.canonical,
        "domain": entry.domain,
        "state": entry.standing.state.name.lower(),
        "former_state": None if former is None else former.name.lower(),
        "granter": entry.granter,
        "forwarder_id": entry.forwarder_id,
        "recipe_id": entry.recipe_id,
        "agreement_id": entry.agreement_id,
        "user_id": entry.user_id,
        "roster_serial": entry.serial,
        "ended_by": None if end is None else end.by.name.lower(),
        "ended_at": None if end is None else _when(end.at_us),
        "seen_at": _when(entry.seen_us),
        "asked_at": _when(entry.asked_us),
        "agreed_at": _when(entry.agreed_us),
        "next_step_at": _when(entry.due_us),
        "messages": entry.messages,
        "bytes": entry.bytes,
        "last_message_at": _when(entry.last_message_us),
        "spellings": list(entry.spellings),
        "login_refused": entry.login_refused,
        "note": entry.note,
    }


def describe_entry(entry: ForwarderEntry) -> Iterator[str]:
    """One agreement on several lines."""
    standing = entry.standing
    state = standing.state.name.lower()
    if standing.former is not None:
        state += f" (else {standing.former.name.lower()})"
    yield clean(entry.canonical)
    yield f"  state         {state}"
    if entry.end is not None:
        who = "a roster" if entry.end.by is EndedBy.ROSTER else "the granter"
        yield f"  ended by      {who}, {tell_local(entry.end.at_us)}"
    yield f"  granter       {entry.granter or 'not asked yet'}"
    yield f"  agreement-ID  {entry.agreement_id or '-'}"
    yield f"  recipe        {entry.recipe_id or '-'}"
    yield f"  roster        {entry.serial or 'none vouched'}"
    for label, at_us in (
        ("first seen", entry.seen_us),
        ("agreed", entry.agreed_us),
        ("last message", entry.last_message_us),
        ("next step", entry.due_us),
    ):
        if at_us:
            yield f"  {label:<12}  {tell_local(at_us)}"
    yield f"  messages      {entry.messages:,}, {tell_size(entry.bytes)}"
    if entry.spellings:
        yield f"  written as    {', '.join(map(clean, entry.spellings))}"
    if entry.login_refused:
        yield "  password      refused by a next hop, being set anew"
    if entry.note:
        yield f"  note          {clean(entry.note)}"


# --------------------------------------------------------------------------- granted


def grant_line(grant: Grant) -> str:
    """One grant on one line."""
    blocked = ", blocked" if grant.blocked else ""
    return (
        f"{grant.agreement_id}  {clean(grant.mailbox)}  {grant.state.name.lower()}{blocked}"
        f"  {grant.forwarder_id}"
    )


def grant_document(grant: Grant) -> dict[str, Any]:
    """One grant for --json."""
    return {
        "agreement_id": grant.agreement_id,
        "address": grant.mailbox,
        "domain": grant.domain,
        "user_id": grant.user_id,
        "state": grant.state.name.lower(),
        "blocked": grant.blocked,
        "forwarder_id": grant.forwarder_id,
        "recipe_id": grant.recipe_id,
        "name": grant.name,
        "policy_negotiation_url": grant.policy_url,
        "feedback_address": grant.feedback_address,
        "asked_at": _when(grant.created_us),
        "agreed_at": _when(grant.agreed_us),
        "changed_at": _when(grant.changed_us),
        "evidence_seen_at": _when(grant.evidence_us),
    }


def describe_grant(grant: Grant) -> Iterator[str]:
    """One grant on several lines."""
    yield f"{clean(grant.mailbox)} at {grant.forwarder_id}"
    yield f"  state         {grant.state.name.lower()}{', blocked' if grant.blocked else ''}"
    yield f"  agreement-ID  {grant.agreement_id}"
    yield f"  recipe        {grant.recipe_id} ({clean(grant.name)})"
    yield f"  user          {clean(grant.user_id) or '-'}"
    yield f"  policy URL    {clean(grant.policy_url)}"
    for label, at_us in (
        ("asked", grant.created_us),
        ("first message", grant.evidence_us),
        ("agreed", grant.agreed_us),
        ("changed", grant.changed_us),
    ):
        if at_us:
            yield f"  {label:<13} {tell_local(at_us)}"


# --------------------------------------------------------------------------- servers


def holder_line(holder: Holder) -> str:
    """One server that stores an address."""
    if holder.error:
        return f"{clean(holder.party)}  cannot be asked: {clean(tell_error(holder.error))}"
    since = tell_local(holder.since_us) if holder.since_us else "-"
    return (
        f"{clean(holder.party)}  {clean(holder.host)}, preference {holder.preference}, "
        f"since {since}, {holder.messages:,} messages"
    )


def holder_document(holder: Holder) -> dict[str, Any]:
    """One server for --json."""
    if holder.error:
        return {"party": holder.party, "error": holder.error}
    return {
        "party": holder.party,
        "host": holder.host,
        "preference": holder.preference,
        "since": _when(holder.since_us),
        "messages": holder.messages,
        "last_message_at": _when(holder.last_message_us),
    }

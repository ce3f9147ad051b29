"""Rows of an SQL query as entries: one column with an address, or local part and domain."""

from __future__ import annotations

from collections.abc import Sequence

from posthouse.domain.source_entries import EntryReader

PLACE = "{domain}"


def bind_domain(query: str, domain: str, mark: str) -> tuple[str, tuple[str, ...]]:
    """Replace every ``{domain}`` of a query by the driver's mark, and give the values for them.

    mark: "?" or "%s"; for the latter other per cent signs are doubled.
    """
    count = query.count(PLACE)
    if mark == "%s" and count:
        query = query.replace("%", "%%")
    return query.replace(PLACE, mark), (domain,) * count


def read_row(row: Sequence[object], entries: EntryReader) -> str | None:
    """The content of the local part that a row names; None when it is not to be listed.

    NULL names nobody. Raises ValueError for three columns or more.
    """
    if len(row) > 2 or not row:
        raise ValueError(
            f"the query gives {len(row)} columns; one (address) or two (local part, domain)"
        )
    texts = [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in row]
    if any(text is None for text in texts):
        return None
    return entries.read("@".join(str(text).strip() for text in texts))

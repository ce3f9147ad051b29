"""The MX set that a roster says is meant, beside the one that DNS publishes (PROTOCOL.md §2)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

MxSet = Sequence[tuple[int, str]]


def find_mx_differences(
    said: MxSet, published: MxSet | None, own_names: Collection[str]
) -> tuple[str, ...]:
    """What is wrong, each in some words; () when all is well.

    said: of the roster; published: of DNS, None when the domain does not exist. Names are
    compared without case and last dot. own_names: ours, lower case: one of them must be
    published, and must not be the best.
    """
    if published is None:
        return ("the domain does not exist in DNS",)
    meant, found = _fold(said), _fold(published)
    wrong = []
    if meant != found:
        wrong.append(f"DNS publishes {_tell(found)}, its roster says {_tell(meant)}")
    ours = [preference for preference, host in found if host in own_names]
    if not ours:
        wrong.append("this host is not among the MX records")
    elif min(ours) == found[0][0]:
        wrong.append("this host is the best MX: there is nobody to bring mail to")
    return tuple(wrong)


def _fold(records: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted({(preference, host.rstrip(".").lower()) for preference, host in records})


def _tell(records: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{preference} {host or '.'}" for preference, host in records) or "no MX"

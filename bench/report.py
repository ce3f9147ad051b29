"""Medians, ratios, verdicts, the table and the JSON file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.stage import Row, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one `measure` yielded. stolen: share of one core the hypervisor took meanwhile."""

    figure: str
    side: Side
    round: int
    seconds: float
    stolen: float
    values: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table. spread: (max - min) / median of our runs, None with one run."""

    row: Row
    ours: float | None
    theirs: float | None
    ratio: float | None
    spread: float | None
    verdict: str


def judge(row: Row, runs: Sequence[Run]) -> Line | None:
    """Medians of both sides and what the demands say; None when nobody measured it."""
    ours, theirs = (_values(row, runs, side) for side in ("posthouse", "postfix"))
    if not ours and not theirs:
        return None
    our = statistics.median(ours) if ours else None
    their = statistics.median(theirs) if theirs else None
    ratio = None
    if our and their:
        ratio = our / their if row.better == "more" else their / our
    spread = (max(ours) - min(ours)) / our if our and len(ours) > 1 else None
    return Line(
        row=row,
        ours=our,
        theirs=their,
        ratio=ratio,
        spread=spread,
        verdict=_verdict(row, our, ratio),
    )


def _values(row: Row, runs: Sequence[Run], side: str) -> list[float]:
    return [run.values[row.name] for run in runs if run.side == side and row.name in run.values]


def _verdict(row: Row, ours: float | None, ratio: float | None) -> str:
    if row.versus is None or row.floor is None or ours is None:
        return ""
    if row.versus == "bound":
        good = ours <= row.floor if row.better == "less" else ours >= row.floor
        return "met" if good else "MISSED"
    if ratio is None:
        return ""
    if row.aim is not None and ratio >= row.aim:
        return "aim met"
    return "met" if ratio >= row.floor else "MISSED"


def format_table(lines: Sequence[Line]) -> str:
    """Markdown, so that it can go into the document as it is."""
    out = [
        "| figure | unit | ours | Postfix | ratio | floor | aim | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for line in lines:
        row = line.row
        floor = "" if row.floor is None else f"{row.floor:g} x"
        if row.versus == "bound":
            floor = f"<= {row.floor:g}" if row.better == "less" else f">= {row.floor:g}"
        spread = "" if line.spread is None else f" ±{line.spread / 2:.0%}"
        out.append(
            f"| {row.what} | {row.unit} | {_number(line.ours)}{spread} | {_number(line.theirs)} "
            f"| {'' if line.ratio is None else f'{line.ratio:.2f} x'} | {floor} "
            f"| {'' if row.aim is None else f'{row.aim:g} x'} | {line.verdict} |"
        )
    return "\n".join(out)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def record(document: Path, facts: dict[str, str], lines: Sequence[Line], options: str) -> None:
    """Put machine and table between the markers of a document. Raises ValueError without them."""
    text = document.read_text()
    head, begin, rest = text.partition(BEGIN)
    _old, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} has no {BEGIN} … {END}")
    machine = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    table = format_table(lines)
    document.write_text(
        f"{head}{BEGIN}\n\nMeasured with `{options}` on:\n\n{machine}\n\n{table}\n\n{END}{tail}"
    )


def write_json(
    path: Path, facts: dict[str, str], runs: Sequence[Run], lines: Sequence[Line]
) -> None:
    """Everything, raw runs included."""
    document: dict[str, Any] = {
        "machine": facts,
        "figures": [asdict(line) for line in lines],
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")

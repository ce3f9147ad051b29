"""`python -m bench`: run figures on both sides in turn, print a table of ratios."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from bench import (
    accept_and_relay,
    accept_outage,
    agreements,
    backlog,
    connections,
    deep_start,
    drain,
    flat,
    idle_held,
    machine,
    rcpt_unknown,
    report,
    roster_build,
    rosters,
    spool_alone,
)
from bench.load import Refused
from bench.stage import SIDES, Row, Side, Stage
from peers.processes import PeerFailed, PeerMissing

FIGURES: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        accept_outage,
        rcpt_unknown,
        drain,
        accept_and_relay,
        backlog,
        connections,
        flat,
        deep_start,
        idle_held,
        spool_alone,
        roster_build,
        rosters,
        agreements,
    )
}


def main() -> int:
    """Returns 0, 1 when a floor was missed and --strict given, 2 when something could not run."""
    options = _parse()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that everything is ended and removed
    names: list[str] = options.only or list(FIGURES)
    sides: Sequence[Side] = [options.side] if options.side else SIDES
    runs: list[report.Run] = []
    failed = False
    try:
        with Stage(options.directory, quick=options.quick) as stage:
            facts = machine.describe(stage.root)
            print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
            for name in names:
                rounds = min(options.rounds, getattr(FIGURES[name], "ROUNDS", options.rounds))
                for number in range(1, rounds + 1):
                    for side in sides:
                        failed |= not _run_one(stage, name, side, number, runs)
    except (PeerMissing, PeerFailed) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    rows: list[Row] = [row for name in names for row in FIGURES[name].ROWS]
    lines = [line for row in rows if (line := report.judge(row, runs)) is not None]
    print("\n" + report.format_table(lines))
    if options.quick:
        print("\n--quick: smaller numbers than the lines say; nothing to be judged by.")
    if options.json is not None:
        report.write_json(options.json, facts, runs, lines)
    if options.record is not None:
        report.record(options.record, facts, lines, " ".join(["python -m bench", *sys.argv[1:]]))
    missed = any(line.verdict == "MISSED" for line in lines)
    if failed:
        return 2
    return int(missed and options.strict)


def _run_one(stage: Stage, name: str, side: Side, number: int, runs: list[report.Run]) -> bool:
    stolen, began = machine.stolen_seconds(), time.monotonic()
    try:
        values: dict[str, float] = FIGURES[name].measure(stage, side)
    except (PeerFailed, Refused) as failure:
        print(f"{name} {side} round {number}: FAILED: {failure}", file=sys.stderr, flush=True)
        return False
    took = time.monotonic() - began
    share = (machine.stolen_seconds() - stolen) / took
    run = report.Run(
        figure=name, side=side, round=number, seconds=took, stolen=share, values=values
    )
    runs.append(run)
    told = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
    print(f"{name} {side} round {number} ({took:.0f} s, steal {share:.0%}): {told}", flush=True)
    return True


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=FIGURES, help="one figure; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each figure (median)")
    parser.add_argument("--quick", action="store_true", help="small numbers, one round")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a floor is missed")
    parser.add_argument("--side", choices=SIDES, help="one side only, to try something")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--record", type=Path, help="put the table into this document")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(__file__).resolve().parents[1] / ".bench",
        help="where both queues lie; the disk that is measured (default: .bench)",
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    return options


if __name__ == "__main__":
    sys.exit(main())

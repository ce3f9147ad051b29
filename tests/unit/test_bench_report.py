"""The benchmark's own sums: ratios, verdicts, message sizes, the load generator."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import load, report
from bench.__main__ import FIGURES
from bench.stage import Row, Side, Stage

from peers.smtp_tools import SmtpSink


def _run(side: Side, number: int, value: float) -> report.Run:
    return report.Run(
        figure="f", side=side, round=number, seconds=1, stolen=0, values={"figure": value}
    )


@pytest.mark.parametrize(
    ("better", "versus", "ours", "theirs", "ratio", "verdict"),
    [
        ("more", "rival", 300, 100, 3.0, "met"),
        ("more", "rival", 299, 100, 2.99, "MISSED"),
        ("more", "rival", 500, 100, 5.0, "aim met"),
        ("less", "rival", 10, 40, 4.0, "met"),
        ("less", "bound", 3, None, None, "met"),
        ("less", "bound", 3.1, 1, 1 / 3.1, "MISSED"),
        ("less", None, 3.1, 1, 1 / 3.1, ""),
    ],
)
def test_verdicts(
    better: str, versus: str | None, ours: float, theirs: float | None, ratio: float, verdict: str
) -> None:
    """A ratio above 1 is always better for us, and floors and aims are judged by it."""
    row = Row(name="figure", what="x", unit="y", better=better, versus=versus, floor=3, aim=5)  # type: ignore[arg-type]
    runs = [_run("posthouse", 1, ours)]
    if theirs is not None:
        runs.append(_run("postfix", 1, theirs))
    line = report.judge(row, runs)
    assert line is not None
    assert line.ratio == (ratio if ratio is None else pytest.approx(ratio))
    assert line.verdict == verdict


def test_medians() -> None:
    """One bad round of three does not move a figure."""
    row = Row(name="figure", what="x", unit="y", versus="rival", floor=3)
    runs = [_run("posthouse", n, value) for n, value in enumerate((40, 400, 420))]
    runs += [_run("postfix", n, value) for n, value in enumerate((100, 90, 900))]
    line = report.judge(row, runs)
    assert line is not None
    assert (line.ours, line.theirs) == (400, 100)
    assert "| 4.00 x | 3 x |" in report.format_table([line])


def test_a_recorded_run_replaces_the_one_before(tmp_path: Path) -> None:
    """Only what stands between the markers of the document changes."""
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before {report.BEGIN} old {report.END} after")
    row = Row(name="figure", what="speed of a thing", unit="y")
    line = report.judge(row, [_run("posthouse", 1, 7)])
    assert line is not None
    for _ in range(2):
        report.record(document, {"cores": "2"}, [line], "python -m bench")
    text = document.read_text()
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert " old " not in text
    assert text.count("speed of a thing") == 1


@pytest.mark.parametrize("size", [4096, 65536, 50_000])
def test_messages_have_their_size(tmp_path: Path, size: int) -> None:
    """A message of 4 KiB is 4096 octets on the wire."""
    stage = Stage(tmp_path, quick=True)
    text = stage.message(size).read_bytes()
    assert len(text.replace(b"\n", b"\r\n")) == size
    assert b"\n." not in text
    stage.__exit__(None, None, None)


@pytest.mark.peers
@pytest.mark.parametrize("reuse", [False, True])
def test_the_generator_sends_what_it_says(tmp_path: Path, reuse: bool) -> None:
    """Every message counted by the generator is one the server took."""
    with SmtpSink(tmp_path) as sink:
        plan = load.Plan(kind="deliver", port=sink.port, count=40, sessions=4, reuse=reuse)
        tally = load.drive(plan)
        sink.wait_messages(40)
    assert tally.done == len(tally.dot) == len(tally.whole) == 40


@pytest.mark.peers
def test_the_generator_refuses_a_wrong_reply(tmp_path: Path) -> None:
    """A recipient that is taken when it should be unknown voids the run."""
    plan = load.Plan(kind="unknown", port=0, count=100, sessions=2)
    with SmtpSink(tmp_path) as sink:
        plan.port = sink.port
        with pytest.raises(load.Refused, match="250"):
            load.drive(plan)


def test_every_row_has_a_name_of_its_own() -> None:
    """Values are gathered by row name: two rows of one name would be mixed into one median."""
    names = [row.name for module in FIGURES.values() for row in module.ROWS]
    assert len(names) > 30
    assert sorted(set(names)) == sorted(names)

"""What workers say is wrong, as alerts of the node; which certificates are watched."""

from __future__ import annotations

from pathlib import Path

import trustme

from posthouse.config import load
from posthouse.interfaces.control_wire import AlertStatus, WorkerStatus
from posthouse.node_watch import find_certificates, worker_alerts
from posthouse.transports.certificate import find_end_us


def status(*alerts: AlertStatus, problem: str | None = None) -> WorkerStatus:
    return WorkerStatus(pid=1, shards=(0,), alerts=alerts, intake_problem=problem)


def test_what_concerns_one_worker_is_told_of_each() -> None:
    """Storage and shards are a worker's own; what all see alike is one alert."""
    own = AlertStatus(kind="storage", text="shard 0 cannot be opened")
    both = AlertStatus(kind="tls", text="STARTTLS is not offered")
    first, second = (worker_alerts(index, status(own, both)) for index in (0, 1))
    assert [alert.subject for alert in first] == ["worker 0", "STARTTLS is not offered"]
    assert first[0].subject != second[0].subject
    assert first[1] == second[1]


def test_several_of_a_kind_do_not_hide_each_other() -> None:
    """Without a subject the text tells them apart; with one the subject does."""
    texts = [AlertStatus(kind="live-check", text=f"the primary of {d}") for d in ("a", "b")]
    named = [AlertStatus(kind="quota-full", text="x", subject=d) for d in ("a", "b")]
    found = worker_alerts(0, status(*texts, *named))
    assert len({(alert.kind, alert.subject) for alert in found}) == 4


def test_next_hops_are_told_by_who_decides_them() -> None:
    """A worker's own view of a next hop is no alert of the node."""
    down = AlertStatus(kind="next-hop-down", text="next hop x is down")
    assert worker_alerts(0, status(down)) == []


def test_no_intake_is_an_alert() -> None:
    """Unless the worker says itself what is wrong."""
    (alert,) = worker_alerts(0, status(problem="only 3 MiB are free"))
    assert "only 3 MiB are free" in alert.text
    said = AlertStatus(kind="storage", text="shard 0 cannot be opened")
    assert len(worker_alerts(0, status(said, problem="shard 0 cannot be opened"))) == 1


def test_certificates(tmp_path: Path) -> None:
    """Those of [smtp] and [https], each once; the end of the first in the file."""
    issued = trustme.CA().issue_cert("mx2.example.net")
    with (tmp_path / "chain.pem").open("wb") as file:
        for blob in issued.cert_chain_pems:
            file.write(blob.bytes())
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "list").write_text("bob\n")
    both = 'certificate = "chain.pem"\nprivate_key = "key.pem"\n'
    (tmp_path / "posthouse.toml").write_text(
        f'hostname = "mx2.example.net"\n[smtp]\n{both}[https]\n{both}'
        '[[domain]]\nname = "example.com"\nrecipients = "list"\n'
    )
    config = load(tmp_path / "posthouse.toml")
    assert find_certificates(config) == [tmp_path / "chain.pem"]
    assert find_end_us(tmp_path / "chain.pem") > 1_700_000_000_000_000

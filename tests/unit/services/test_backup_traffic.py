"""What is noted of the backups' requests, and kept."""

from __future__ import annotations

from pathlib import Path

from posthouse.ports_https import Party, PeerAnswer, PeerRequest, ProblemAnswer
from posthouse.services.backup_traffic import BackupTraffic, Fetched, Traffic
from posthouse.storage.traffic_file import load_traffic, save_traffic

REQUEST = PeerRequest(
    party=Party(name="mx2.example.net", domains=frozenset({"example.com"})),
    path_params={"domain": "Example.com"},
)


async def served(_request: PeerRequest) -> PeerAnswer:
    return PeerAnswer(status=304, headers={"ETag": '"7"'})


async def refused(_request: PeerRequest) -> ProblemAnswer:
    return ProblemAnswer(status=503, title="No roster yet", detail="later")


async def test_what_was_answered_is_noted(tmp_path: Path) -> None:
    """A roster and a word about agreements; what was refused is not; a file keeps it."""
    traffic = BackupTraffic({}, now_us=lambda: 5)
    await traffic.note_fetches(refused)(REQUEST)
    await traffic.note_agreements(refused)(REQUEST)
    assert traffic.take_news() is None
    await traffic.note_fetches(served)(REQUEST)
    await traffic.note_agreements(served)(REQUEST)
    news = traffic.take_news()
    expected = Traffic(fetched={"example.com": Fetched(serial=7, at_us=5)}, agreements_us=5)
    assert news == {"mx2.example.net": expected}
    assert traffic.take_news() is None
    save_traffic(tmp_path / "watch" / "backups.json", news)
    assert load_traffic(tmp_path / "watch" / "backups.json", Traffic) == news


def test_a_damaged_file_and_a_lost_partner(tmp_path: Path) -> None:
    """Neither stops anything: nothing is known then."""
    (tmp_path / "backups.json").write_bytes(b"{")
    assert load_traffic(tmp_path / "backups.json", Traffic) == {}
    traffic = BackupTraffic({"mx2.example.net": Traffic()}, now_us=lambda: 5)
    traffic.keep_only(set())
    assert traffic.take_news() == {}

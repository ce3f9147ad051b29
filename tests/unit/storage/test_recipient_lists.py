"""From the text file to the index in force."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from posthouse.domain.finding import Finding
from posthouse.errors import ConfigError, StorageBroken
from posthouse.ports_recipients import RecipientListFacts
from posthouse.storage.recipient_lists import RecipientIndexes, check_recipients


class Bench:
    def __init__(self, root: Path) -> None:
        self.source = root / "example.com.recipients"
        self.indexes = RecipientIndexes(root / "recipients")
        self.indexes.prepare()

    def publish(
        self, text: bytes | str, *, refuse_empty: bool = False
    ) -> RecipientListFacts | None:
        self.source.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.indexes.publish(
            "example.com", str(self.source), now_us=5, refuse_empty=refuse_empty
        )

    def find(self, local_part: str) -> Finding:
        directory = self.indexes.open("example.com")
        return Finding.UNKNOWN if directory is None else directory.find(local_part).finding


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_published_list_is_in_force(bench: Bench) -> None:
    """What `publish` returned from is found by whoever opens it."""
    assert bench.find("alice") is Finding.UNKNOWN
    facts = bench.publish("alice@example.com OK\nbob\nbob\nx@example.net OK\n")
    assert facts is not None
    assert (facts.entries, facts.skipped, facts.built_us) == (2, 1, 5)
    assert facts.source_version == bench.indexes.get_source_version(str(bench.source))
    assert bench.indexes.verified_facts("example.com") == facts
    assert bench.find("Alice+x") is Finding.VOUCHED
    assert bench.find("carol") is Finding.ABSENT


def test_last_line_needs_no_line_feed(bench: Bench) -> None:
    """Lines end with LF, CR LF or the file."""
    bench.publish(b"alice\r\nbob")
    assert bench.find("alice") is bench.find("bob") is Finding.VOUCHED


@pytest.mark.parametrize("text", ["", "# nobody yet\n"])
def test_empty_file_means_nobody(bench: Bench, text: str) -> None:
    """A file without recipients is a list on which nobody stands."""
    facts = bench.publish(text)
    assert facts is not None
    assert facts.entries == 0
    assert bench.find("alice") is Finding.ABSENT


def test_file_of_no_octets_can_be_refused(bench: Bench) -> None:
    """A file that shrank to nothing is a mistake when asked so."""
    bench.publish("alice\n")
    with pytest.raises(ConfigError, match="empty"):
        bench.publish("", refuse_empty=True)
    assert bench.find("alice") is Finding.VOUCHED
    assert bench.publish("# nobody\n", refuse_empty=True) is not None


def test_broken_file_changes_nothing(bench: Bench) -> None:
    """One mistake refuses the whole file; all are named with their lines."""
    bench.publish("alice\n")
    with pytest.raises(ConfigError) as caught:
        bench.publish("bob\n<carol>\n\xe9 \xff".encode("latin-1"))
    assert [line.rpartition("recipients:")[2] for line in caught.value.mistakes] == [
        "2: not an address or local part: <carol>",
        "3: not UTF-8",
    ]
    assert bench.find("alice") is Finding.VOUCHED
    assert bench.find("bob") is Finding.ABSENT


def test_what_is_no_text_file(bench: Bench, tmp_path: Path) -> None:
    """Missing files, directories, pipes and endless lines are mistakes, and nobody waits for them."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for source, said in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "not a regular file"),
        (pipe, "not a regular file"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_recipients("example.com", str(source))
    with pytest.raises(ConfigError, match="longer than 4096"):
        bench.publish(b"x" * 5_000_000)
    with pytest.raises(ConfigError, match=r":1: longer .*\n.*:3: longer"):
        bench.publish(b"x" * 3_000_000 + b"\nalice\n" + b"y" * 2_000_000 + b"\nbob\n")


def test_lines_across_reads(bench: Bench) -> None:
    """Lines are whole wherever the reads of the file fall."""
    lines = [f"user{number:06d}@example.com" for number in range(60_000)]
    facts = bench.publish("\n".join(lines))
    assert facts is not None
    assert (facts.entries, facts.skipped) == (60_000, 0)


def test_file_written_to_meanwhile_is_left_for_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes under the reader is not put in force."""
    bench.publish("alice\n")
    bench.source.write_text("bob\n")
    status = os.stat

    def append_then_stat(path: str | Path) -> os.stat_result:
        with bench.source.open("a") as file:
            file.write("carol\n")
        return status(path)

    monkeypatch.setattr("posthouse.storage.recipient_lists.os.stat", append_then_stat)
    assert (
        bench.indexes.publish("example.com", str(bench.source), now_us=0, refuse_empty=False)
        is None
    )
    monkeypatch.undo()
    assert bench.find("alice") is Finding.VOUCHED


def test_versions_change_with_what_they_stand_for(bench: Bench) -> None:
    """A watcher sees by one stat that a list, any list, or a source is another."""
    indexes, source = bench.indexes, str(bench.source)
    assert indexes.get_source_version(source) is None
    assert indexes.get_version("example.com") is None
    bench.publish("alice\n")
    first = indexes.get_source_version(source), indexes.get_version("example.com")
    assert None not in first
    assert (indexes.get_source_version(source), indexes.get_version("example.com")) == first
    bench.publish("alicia\n")
    assert indexes.get_source_version(source) != first[0]
    assert indexes.get_version("example.com") != first[1]
    assert indexes.get_directory_version() is not None


def test_damaged_or_foreign_index_is_none(bench: Bench, tmp_path: Path) -> None:
    """An index that does not check out, or is another domain's, is as good as none."""
    bench.publish("alice\n")
    index = tmp_path / "recipients" / "example.com.idx"
    data = index.read_bytes()
    (tmp_path / "recipients" / "example.net.idx").write_bytes(data)
    assert bench.indexes.open("example.net") is None
    index.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert bench.indexes.verified_facts("example.com") is None
    index.write_bytes(data[:100])
    assert bench.indexes.open("example.com") is None
    assert bench.indexes.verified_facts("example.com") is None


def test_leftovers_are_cleared(bench: Bench, tmp_path: Path) -> None:
    """What an interrupted publish left behind does not pile up."""
    bench.publish("alice\n")
    (tmp_path / "recipients" / ".new-abc").write_bytes(b"half")
    bench.indexes.prepare()
    assert [path.name for path in (tmp_path / "recipients").iterdir()] == ["example.com.idx"]


def test_failure_to_write_keeps_the_old_list(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails while the index is written is a temporary fault of ours."""
    bench.publish("alice\n")

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("posthouse.storage.recipient_index.os.fsync", fail)
    with pytest.raises(StorageBroken, match="Input/output error"):
        bench.publish("bob\n")
    monkeypatch.undo()
    assert bench.find("alice") is Finding.VOUCHED
    assert len(os.listdir(bench.source.parent / "recipients")) == 1

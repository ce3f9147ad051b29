"""Messages as mbox and Maildir."""

from __future__ import annotations

import contextlib
import mailbox
import stat
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from posthouse.cli.export_mail import Maildir, Mbox, format_mbox, quote_from, with_lf
from posthouse.mail.envelope import Client
from posthouse.ports_spool import QueuedMessage

HEADER = b"X-Posthouse-Id: x\r\nSubject: s\r\n\r\n"


def message(queue_id: int = 0x6614BCC4363C500, sender: str = "a@b.example") -> QueuedMessage:
    return QueuedMessage(
        queue_id=queue_id,
        received_us=1_700_000_000_000_000,
        size_bytes=10,
        envelope_sender=sender,
        body_type="",
        smtputf8=False,
        ret="",
        envid="",
        client=Client(address="192.0.2.1", port=25),
        recipients=(),
    )


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(
    data=st.lists(
        st.sampled_from([b"\n", b"From ", b">", b"x", b"Fro", b"m ", b"\r\n", b"\r", b">>From "])
    ).map(b"".join),
    size=st.integers(1, 20),
)
@example(data=b">" * 9000 + b"From \nFrom x", size=100)
def test_pieces_make_no_difference(data: bytes, size: int) -> None:
    """However a message comes in pieces, lines and quotes are those of the whole."""
    whole = b"".join(quote_from(with_lf([data])))
    assert b"".join(quote_from(with_lf(cut(data, size)))) == whole
    unquoted = b"\n".join(
        line[1:] if line.startswith(b">") and line.lstrip(b">").startswith(b"From ") else line
        for line in whole.split(b"\n")
    )
    assert unquoted == data.replace(b"\r\n", b"\n")


def test_an_mbox_is_read_back(tmp_path: Path) -> None:
    """Another program's reader finds each message; the file is ours alone and never overwritten."""
    box = Mbox(tmp_path / "box")
    box.write(message(), cut(HEADER + b"From here\r\n>From there\r\nend", 7))
    box.write(message(sender=""), [HEADER + b"two\r\n"])
    box.close()
    octets = (tmp_path / "box").read_bytes()
    assert octets.startswith(b"From a@b.example Tue Nov 14 22:13:20 2023\n")
    assert b"\nFrom MAILER-DAEMON Tue " in octets
    assert b"\n>From here\n>>From there\nend\n\n" in octets
    assert b"\r" not in octets
    with contextlib.closing(mailbox.mbox(tmp_path / "box")) as reader:
        first, second = reader
    assert (first["Subject"], second.get_payload()) == ("s", "two\n")
    assert stat.S_IMODE((tmp_path / "box").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        Mbox(tmp_path / "box")


def test_an_mbox_keeps_no_half_message(tmp_path: Path) -> None:
    """What fails half way is taken back; what came before and comes after stands."""

    def broken() -> object:
        yield HEADER + b"a" * 100_000
        raise OSError("damaged")

    box = Mbox(tmp_path / "box")
    box.write(message(), [HEADER + b"one\r\n"])
    with pytest.raises(OSError, match="damaged"):
        box.write(message(), broken())  # type: ignore[arg-type]
    box.write(message(), [HEADER + b"two\r\n"])
    box.close()
    with contextlib.closing(mailbox.mbox(tmp_path / "box")) as reader:
        found = [one.get_payload() for one in reader]
    assert found == ["one\n", "two\n"]


def test_a_maildir_is_read_back(tmp_path: Path) -> None:
    """Messages lie in new/, each under a name of its own even for the same message."""
    box = Maildir(tmp_path / "box")
    paths = [box.write(message(), cut(HEADER + b"From here\r\n", 7)) for _ in range(2)]
    box.close()
    assert len(set(paths)) == 2
    assert all(path.parent.name == "new" for path in paths)
    assert paths[0].read_bytes() == (HEADER + b"From here\r\n").replace(b"\r\n", b"\n")
    assert list((tmp_path / "box" / "tmp").iterdir()) == []
    found = mailbox.Maildir(tmp_path / "box", create=False)
    assert [one["Subject"] for one in found] == ["s", "s"]


def test_a_maildir_keeps_no_half_message(tmp_path: Path) -> None:
    """What fails half way leaves nothing behind, in tmp/ neither."""

    def broken() -> object:
        yield HEADER
        raise OSError("damaged")

    box = Maildir(tmp_path / "box")
    with pytest.raises(OSError, match="damaged"):
        box.write(message(), broken())  # type: ignore[arg-type]
    assert [path for path in (tmp_path / "box").rglob("*") if path.is_file()] == []


def test_a_sender_cannot_spoil_the_from_line() -> None:
    """Addresses that would not fit the From_ line are not written into it."""
    for sender in ("a b@c.example", "zoë@c.example", ""):
        first = next(iter(format_mbox(message(sender=sender), [HEADER])))
        assert first.startswith(b"From MAILER-DAEMON ")

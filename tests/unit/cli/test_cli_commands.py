"""The commands as an operator runs them, without a running node."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.queueid import format_queue_id, parse_queue_id, shard_of
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings

CONFIG = """\
hostname = "mx2.example.net"
data_dir = "data"
contact = "ops@elsewhere.example"
[[domain]]
name = "example.com"
recipients = "list"
[[domain]]
name = "example.org"
recipients = "list"
"""
CLIENT = Client(address="192.0.2.7", port=4711, name="client.example", helo="client.example")
BODY = b"Received: from client.example\r\nSubject: \xc3\xa4 \x1b[31m\r\n\r\nLine\x00\xff\r\n"


class Done:
    """How a command ended."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.raw = out
        self.out = out.decode("utf-8", "replace")
        self.err = err.decode("utf-8", "replace")


class Site:
    """A configured directory without a node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "posthouse.toml"
        self.config.write_text(CONFIG)
        (directory / "list").write_text("# none yet\nbob@example.com\nann@example.org\n")

    def run(self, *arguments: str, config: bool = True, stdin: str = "", **more: str) -> Done:
        """Run a command, with this site's configuration unless told otherwise."""
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from posthouse.cli.main import main; main()",
                *arguments,
                *(["-c", str(self.config)] if config else []),
            ],
            cwd=self.directory,
            env={**os.environ, "TZ": "UTC", **more},
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def listed(self, *arguments: str) -> list[str]:
        """The ids `queue list` shows."""
        done = self.run("queue", "list", "--json", *arguments)
        return [json.loads(line)["id"] for line in done.out.splitlines()]

    def fill(self) -> list[str]:
        """Three messages in two shards; returns their ids, oldest first."""
        return asyncio.run(self._fill())

    async def _fill(self) -> list[str]:
        spools = [
            await EmbeddedSpool.open(
                self.directory / "data" / "spool" / str(shard),
                shard=shard,
                settings=SpoolSettings(min_free_bytes=0),
                clock_us=lambda: time.time_ns() // 1000,
            )
            for shard in (0, 1)
        ]
        ids = []
        for number, (sender, recipients) in enumerate(
            [
                ("alice@sender.example", ("bob@example.com", "ann@example.org")),
                ("", ("bob@example.com",)),
                ("carol@sender.example", ("Bob@example.com",)),
            ]
        ):
            spool = spools[number % 2]
            incoming = spool.begin()
            incoming.write(BODY)
            await spool.commit(
                incoming,
                envelope=Envelope(
                    sender=sender,
                    recipients=tuple(
                        Recipient(address=one, domain=one.rpartition("@")[2], notify="NEVER")
                        for one in recipients
                    ),
                ),
                client=CLIENT,
            )
            ids.append(format_queue_id(incoming.queue_id))
        for spool in spools:
            await spool.close()
        return ids


@pytest.fixture(name="site")
def make_site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_check_tells_what_is_fine(site: Site) -> None:
    """A good configuration exits 0 and is summed up, lists included."""
    done = site.run("check")
    assert (done.code, done.err) == (0, "")
    assert "is fine" in done.out
    assert "example.com  to MX in DNS; 1 recipients" in done.out


def test_check_tells_every_mistake(site: Site) -> None:
    """Mistakes of the file and of the lists exit 78; nothing is said on standard output."""
    site.config.write_text(CONFIG.replace('data_dir = "data"', "x = 1\ny = 2"))
    done = site.run("check")
    assert (done.code, done.out) == (78, "")
    assert [line.split(":")[1] for line in done.err.splitlines()] == ["2", "3"]
    site.config.write_text(CONFIG)
    (site.directory / "list").write_text("bob@example.com\nb@d@d@r\n%what\n")
    done = site.run("check", "--json")
    assert done.code == 78
    document = json.loads(done.out)
    assert document["ok"] is False
    assert any("list:2" in line or "list:3" in line for line in document["mistakes"])


def test_check_tells_of_both_the_file_and_its_lists(site: Site) -> None:
    """A mistake in the configuration does not hide those of the lists that it names."""
    site.config.write_text(CONFIG.replace('data_dir = "data"', "x = 1"))
    (site.directory / "list").write_text("bob@example.com\nb@d@d@r\n")
    done = site.run("check")
    assert (done.code, done.out) == (78, "")
    first, second = done.err.splitlines()
    assert ":2: x: unknown key" in first
    assert "list:2: " in second


def test_check_shows_the_keys(site: Site) -> None:
    """Every key can be looked up from the command line, with its default."""
    site.config.unlink()
    done = site.run("check", "--keys", config=False)
    assert done.code == 0
    assert '| `probe_interval` | `"30s"` |' in done.out


def test_configuration_is_found(site: Site) -> None:
    """Without -c the environment counts, then ./posthouse.toml; none at all is exit 78."""
    assert site.run("check", config=False).code == 0
    assert site.run("check", config=False, POSTHOUSE_CONFIG="other.toml").code == 78
    site.config.rename(site.directory / "other.toml")
    assert site.run("check", config=False, POSTHOUSE_CONFIG="other.toml").code == 0
    assert site.run("queue", "-c", "other.toml", "list", config=False).code == 69


def test_a_spool_that_was_never_made(site: Site) -> None:
    """Asking before the first start exits 69 and says why; nothing is created."""
    done = site.run("status")
    assert done.code == 69
    assert "no node has run here" in done.err
    assert not (site.directory / "data").exists()


def test_list_and_show(site: Site) -> None:
    """Messages of all shards are listed oldest first and shown with their header."""
    ids = site.fill()
    assert site.listed() == ids
    assert site.listed("--limit", "2") == ids[:2]
    text = site.run("queue", "list").out
    assert text.index(ids[0]) < text.index(ids[1]) < text.index(ids[2])
    assert "3 messages for 4 recipients" in text
    shown = site.run("queue", "show", ids[0]).out
    assert "sender     <alice@sender.example>" in shown
    assert shown.count("recipient  queued") == 2
    assert "Subject: ä" in shown
    assert site.run("queue", "show", "--raw", ids[0]).raw == BODY
    document = json.loads(site.run("queue", "show", "--json", ids[1]).out)
    assert (document["sender"], document["id"]) == ("", ids[1])


def test_what_a_stranger_wrote_cannot_steer_the_terminal(site: Site) -> None:
    """Control characters of a message do not reach the screen, except by --raw."""
    ids = site.fill()
    assert b"\x1b" not in site.run("queue", "show", ids[0]).raw


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (("--since", "1h"), [0, 1, 2]),
        (("--since", "2199-01-01"), []),
        (("--since", "2020-01-01T00:00+00:00", "--sender", "<>"), [1]),
        (("--domain", "EXAMPLE.org"), [0]),
        (("--recipient", "bob@example.com"), [0, 1, 2]),
        (("--sender", "<>"), [1]),
        (("--sender", "carol@sender.example"), [2]),
        (("--state", "held"), []),
        (("--older-than", "1d"), []),
        (("--older-than", "0s"), [0, 1, 2]),
        (("--reply", "nothing of the kind"), []),
    ],
)
def test_selections(site: Site, arguments: tuple[str, ...], numbers: list[int]) -> None:
    """Every condition chooses what it says; finding nothing exits 1."""
    ids = site.fill()
    assert site.listed(*arguments) == [ids[number] for number in numbers]
    assert site.run("queue", "list", *arguments).code == (0 if numbers else 1)


@pytest.mark.parametrize("action", ["hold", "release", "retry", "delete", "export"])
def test_no_change_without_a_choice(site: Site, action: str) -> None:
    """The whole queue is meant only with --all; wrong words exit 2."""
    site.fill()
    more = ("-o", "out") if action == "export" else ()
    done = site.run("queue", action, *more)
    assert done.code == 2
    assert "--all" in done.err
    assert site.run("queue", action, "xyz", *more).code == 2
    assert site.run("queue", action, "--older-than", "soon", "--all", *more).code == 2
    assert site.run("queue", action, "--since", "25:99", "--all", *more).code == 2
    assert len(site.listed()) == 3


def test_hold_and_release(site: Site) -> None:
    """Recipients are moved and counted; a dry run moves nobody; moving nobody exits 1."""
    ids = site.fill()
    done = site.run("queue", "hold", "--domain", "example.com", "--dry-run")
    assert done.out.startswith("3 recipients would be put on hold.\n")
    assert done.out.count("bob@example.com") == 2
    assert site.listed("--state", "held") == []
    assert site.run("queue", "hold", ids[0], ids[1]).out == "3 recipients put on hold.\n"
    assert site.listed("--state", "held") == ids[:2]
    assert site.run("queue", "hold", ids[0]).code == 1
    done = site.run("queue", "release", "--all", "--json")
    assert json.loads(done.out) == {"action": "release", "recipients": 3, "dry_run": False}
    assert site.listed("--state", "held") == []
    assert site.run("queue", "retry", "--all").out == "4 recipients due now.\n"


def test_delete_asks(site: Site) -> None:
    """Deleting needs a yes; anything else leaves the queue as it is."""
    ids = site.fill()
    for answer in ("n\n", ""):
        done = site.run("queue", "delete", "--all", stdin=answer)
        assert done.code == 130
        assert "Delete 3 messages for 4 recipients for good?" in done.err
    assert site.listed() == ids
    assert site.run("queue", "delete", ids[0], stdin="y\n").code == 0
    assert site.run("queue", "delete", "--all", "--yes").out == "2 recipients deleted.\n"
    assert site.listed() == []


def test_export(site: Site) -> None:
    """A file a message: the envelope in X-Posthouse fields, then the octets as stored."""
    ids = site.fill()
    done = site.run("queue", "export", "--all", "-o", "out")
    assert (done.code, done.err) == (0, "")
    files = sorted((site.directory / "out").iterdir())
    assert [file.name for file in files] == [f"{queue_id}.eml" for queue_id in sorted(ids)]
    content = files[0].read_bytes()
    assert content.endswith(b"\r\n" + BODY)
    fields = content[: -len(BODY)].decode().splitlines()
    assert all(line.startswith("X-Posthouse-") for line in fields)
    assert "X-Posthouse-Sender: <alice@sender.example>" in fields
    assert "X-Posthouse-Recipient: <ann@example.org> state=queued attempts=0 notify=NEVER" in fields
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert site.listed() == ids
    one = site.run("queue", "export", ids[1], "-o", "-")
    assert one.raw.endswith(b"X-Posthouse-Recipient: <bob@example.com> "
                            b"state=queued attempts=0 notify=NEVER\r\n" + BODY)  # fmt: skip
    assert b"X-Posthouse-Sender: <>\r\n" in one.raw
    assert site.run("queue", "export", "--all", "-o", "-").code == 2


def test_a_message_that_is_not_there(site: Site) -> None:
    """An id that is well formed and unknown exits 1."""
    site.fill()
    assert site.run("queue", "show", "0123456789ABC00").code == 1
    assert site.run("queue", "export", "0123456789ABC00", "-o", "out").code == 1


def test_status_without_a_node(site: Site) -> None:
    """The spool is told by domain, configured or not."""
    ids = site.fill()
    site.run("queue", "hold", ids[1])
    site.config.write_text(CONFIG.replace('name = "example.org"', 'name = "example.net"'))
    text = site.run("status").out
    assert "no node is running" in text
    document = json.loads(site.run("status", "--json").out)
    rows = {row["domain"]: row for row in document["domains"]}
    assert (rows["example.com"]["queued"], rows["example.com"]["held"]) == (2, 1)
    assert (rows["example.net"]["queued"], rows["example.net"]["configured"]) == (0, True)
    assert (rows["example.org"]["queued"], rows["example.org"]["configured"]) == (1, False)
    assert document["running"] is False


def test_files_stay_with_their_owner() -> None:
    """Root's commands leave nothing in the spool that its owner could not use."""
    with tempfile.TemporaryDirectory() as place:  # where another user can go, unlike tmp_path
        Path(place).chmod(0o755)
        site = Site(Path(place))
        site.fill()
        data = site.directory / "data"
        owner = 65534 if os.geteuid() == 0 else os.geteuid()
        for path in (data, *data.rglob("*")):
            os.chown(path, owner, -1)
        assert site.run("queue", "delete", "--all", "--yes").code == 0
        assert {path.stat().st_uid for path in data.rglob("*")} == {owner}


def test_a_damaged_message_is_told_and_the_others_are_exported(site: Site) -> None:
    """Export goes on past a damaged body, leaves no half file, and exits 69."""
    ids = site.fill()
    shard = shard_of(parse_queue_id(ids[1]) or 0)
    segment = next((site.directory / "data" / "spool" / str(shard)).rglob("*.seg"))
    octets = bytearray(segment.read_bytes())
    at = octets.index(b"Line")
    octets[at : at + 4] = b"LINE"
    segment.write_bytes(octets)
    done = site.run("queue", "export", "--all", "-o", "out")
    assert done.code == 69
    assert ids[1] in done.err
    names = {file.name for file in (site.directory / "out").iterdir()}
    assert names == {f"{ids[0]}.eml", f"{ids[2]}.eml"}


def test_help_is_quick_to_import() -> None:
    """--help imports neither the engine nor the event loop."""
    script = (
        "import sys\nfrom posthouse.cli import main\n"
        "try: main.posthouse_command.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'asyncio', 'apsw', 'dns', 'ssl', 'tomllib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")

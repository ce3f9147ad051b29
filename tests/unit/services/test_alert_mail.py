"""Mail to the contact: by its own MX, never through what this node backs."""

from __future__ import annotations

import asyncio
import email
import email.policy

import pytest

from fakes.connector import FakeConnector, answer_with, refusing
from fakes.resolver import FakeResolver
from posthouse.domain.nexthop import HostPort
from posthouse.errors import TellingFailed
from posthouse.ports_alerts import Alert, Notice, StoredAlert
from posthouse.services.alert_mail import Courier, CourierSettings, MailChannel

NOW_US = 1_700_000_000_000_000


class Post:
    """A courier with its DNS and its peers."""

    def __init__(self, contact: str = "ops@elsewhere.example") -> None:
        self.resolver = FakeResolver(
            mx={
                "elsewhere.example": [(20, "b.elsewhere.example"), (10, "a.elsewhere.example")],
                "example.com": [(10, "mx1.example.com"), (20, "mx2.example.net")],
                "fixed.example": [(10, "mx.fixed.example")],
            },
            addresses={
                "a.elsewhere.example": ["192.0.2.1"],
                "b.elsewhere.example": ["192.0.2.2"],
                "mx1.example.com": ["192.0.2.10"],
                "mx2.example.net": ["192.0.2.20"],
                "hop.example": ["192.0.2.30"],
                "plain.example": ["192.0.2.40"],
            },
        )
        self.connector = FakeConnector()
        self.now_us = NOW_US
        self.courier = Courier(
            CourierSettings(
                node="mx2.example.net",
                contact=contact,
                hops={"example.com": (), "fixed.example": (HostPort("hop.example", 2525),)},
                own_names=frozenset({"mx2.example.net"}),
                own_addresses=frozenset({"192.0.2.20"}),
            ),
            resolver=self.resolver,
            connector=self.connector,
            clock_us=lambda: self.now_us,
            token=lambda: "token",
        )

    async def fails(self) -> TellingFailed:
        with pytest.raises(TellingFailed) as caught:
            await self.courier.send("s", "t")
        return caught.value

    def asked(self) -> list[str]:
        return [target.address for target in self.connector.targets]


def notice(*alerts: StoredAlert) -> Notice:
    return Notice(node="mx2.example.net", number=1, alerts=alerts, made_us=NOW_US)


def stored(text: str = "next hop mx:example.com is down", **more: object) -> StoredAlert:
    alert = Alert(
        kind="next-hop-down",
        subject="mx:example.com",
        text=text,
        what_to_do="Look at the primary",
        since_us=NOW_US - 90_000_000,
    )
    return StoredAlert(number=7, alert=alert, raised_us=NOW_US - 60_000_000, **more)  # type: ignore[arg-type]


async def test_a_mail_goes_to_the_best_mx() -> None:
    """From nobody, to the contact, well formed, marked as made by a machine."""
    post = Post()
    await MailChannel(post.courier).deliver(notice(stored("näxt hop is down")))
    (transaction,) = post.connector.peer("192.0.2.1").received
    message = transaction.message
    assert message.envelope_sender == ""
    assert [row.address for row in message.recipients] == ["ops@elsewhere.example"]
    assert transaction.body is not None
    assert b"\n" not in transaction.body.replace(b"\r\n", b"")
    assert max(map(len, transaction.body.split(b"\r\n"))) < 998
    mail = email.message_from_bytes(transaction.body, policy=email.policy.default)
    assert mail["To"] == "ops@elsewhere.example"
    assert mail["From"] == "Posthouse <postmaster@mx2.example.net>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"] == "<token@mx2.example.net>"
    assert mail["Subject"] == "[mx2.example.net] next-hop-down mx:example.com"
    assert mail["Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    first = mail.get_content().splitlines()[0]
    assert first == (
        "next-hop-down: näxt hop is down; since 2023-11-14 22:11:50 UTC. Look at the primary"
    )


async def test_an_all_clear_tells_how_long_it_was() -> None:
    """From when to when, after what still stands."""
    post = Post()
    over = stored(over_us=NOW_US)
    await MailChannel(post.courier).deliver(notice(over, stored("another")))
    (transaction,) = post.connector.peer("192.0.2.1").received
    mail = email.message_from_bytes(transaction.body or b"", policy=email.policy.default)
    text = mail.get_content()
    assert text.index("another") < text.index("over: ")
    assert "to 2023-11-14 22:13:20 UTC (1m 30s)" in text
    assert "and 1 more" in mail["Subject"]


async def test_the_next_mx_is_tried() -> None:
    """Down, or refusing for now: the next; the failure of all is told."""
    post = Post()
    post.connector.peer("192.0.2.1").down()
    await post.courier.send("s", "t")
    assert post.asked() == ["192.0.2.1", "192.0.2.2"]
    post.connector.peer("192.0.2.2").reply = answer_with(450, "4.7.1 greylisted", "rcpt")
    assert "450 4.7.1 greylisted" in (await post.fails()).detail
    post.connector.peer("192.0.2.2").down(refusing())
    failure = await post.fails()
    assert "554 5.7.1 go away" in failure.detail
    assert not failure.for_good


async def test_a_session_that_breaks_is_a_failure() -> None:
    """Whether it has the mail already or not."""
    post = Post()
    post.resolver.mx["elsewhere.example"] = [(10, "a.elsewhere.example")]
    peer = post.connector.peer("192.0.2.1")
    peer.hold = True
    for depth in (1, 0):
        peer.depth = depth
        sending = asyncio.create_task(post.fails())
        while not peer.open_sessions or len(peer.open_sessions[-1].taken) < depth:
            await asyncio.sleep(0)
        peer.open_sessions[-1].lose("lost it")
        assert "lost it" in (await sending).detail


async def test_a_contact_behind_this_backup_gets_nothing() -> None:
    """One of our domains: not tried, for good."""
    for contact in ("ops@example.com", "ops@FIXED.example"):
        post = Post(contact)
        failure = await post.fails()
        assert failure.for_good
        assert "behind this backup" in failure.detail
        assert post.asked() == []


@pytest.mark.parametrize(
    "exchange",
    ["mx1.example.com", "hop.example", "alias.example", "mx2.example.net", "nat.example"],
)
async def test_no_mail_through_a_next_hop_of_ours_or_ourselves(exchange: str) -> None:
    """By name, by address, by fixed hop: passed over; nobody else left is a failure."""
    post = Post()
    post.resolver.addresses["alias.example"] = ["192.0.2.10"]
    post.resolver.addresses["nat.example"] = ["192.0.2.20"]
    post.resolver.mx["elsewhere.example"] = [(10, exchange)]
    failure = await post.fails()
    assert "behind this backup" in failure.detail
    assert post.asked() == []
    post.resolver.mx["elsewhere.example"] = [(10, exchange), (20, "b.elsewhere.example")]
    await post.courier.send("s", "t")
    assert post.asked() == ["192.0.2.2"]


async def test_what_dns_says_of_the_contact() -> None:
    """No MX means the domain itself; null MX, no domain, no answer are failures to try again."""
    post = Post("ops@plain.example")
    await post.courier.send("s", "t")
    assert post.asked() == ["192.0.2.40"]
    for mx, word in (([(0, "")], "null MX"), ([(1, "void.example")], "no MX")):
        post = Post()
        post.resolver.mx["elsewhere.example"] = mx
        assert word in (await post.fails()).detail
    assert "does not exist" in (await Post("ops@nowhere.example").fails()).detail
    post = Post()
    post.resolver.failing.add("elsewhere.example")
    assert "DNS" in (await post.fails()).detail


async def test_dns_trouble_of_a_backed_domain_stops_no_mail() -> None:
    """What cannot be looked up now cannot be compared; the mail goes."""
    post = Post()
    post.resolver.failing |= {"example.com", "hop.example"}
    await post.courier.send("s", "t")
    assert post.asked() == ["192.0.2.1"]

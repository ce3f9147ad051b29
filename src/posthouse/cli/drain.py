"""`posthouse drain`: what state each next hop is in, and the operator's say in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from posthouse.cli.main import EX_NOTHING, config_option, find_config, inner_config_option
from posthouse.cli.texts import tell_local, tell_span, tell_utc
from posthouse.config import load
from posthouse.config_schema import Config
from posthouse.domain.drain import State
from posthouse.log_sink import clean
from posthouse.ports_drain import NextHopView, Pause, Resume, Show

_HINTS = {
    State.SURGE_STOPPED: "mend the primary, then: posthouse drain resume; "
    "what was refused: posthouse queue release --reply 550 --since …",
    State.BLOCKED: "the primary refuses this host: it should trust it; then mail goes by itself",
    State.SUSPENDED: "posthouse drain resume",
}

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one document a line.")
names_argument = click.argument("names", nargs=-1, metavar="[NEXT HOP]...")


@click.group()
@config_option
@click.pass_context
def drain(context: click.Context, config_file: Path | None) -> None:
    """How mail comes home: the state of each next hop, and your say in it.

    NEXT HOP is one as `drain show` names it, or a backed-up domain; none means
    all. Works with and without a running node.
    """
    context.obj = config_file


@drain.command()
@names_argument
@json_option
@inner_config_option
@click.pass_context
def show(context: click.Context, names: tuple[str, ...], as_json: bool) -> int:
    """Show states, since when, and why."""
    from posthouse.node_drain_desk import ask_board

    config = _load(context)
    views, live = ask_board(config, Show())
    return _tell(_choose(views, names), live=live, as_json=as_json)


@drain.command()
@names_argument
@click.option("--reason", default="", help="For those who ask later.")
@json_option
@inner_config_option
@click.pass_context
def pause(context: click.Context, names: tuple[str, ...], reason: str, as_json: bool) -> int:
    """Send nothing there until `drain resume`, and do not probe. Mail is taken in as before."""
    why = "by the operator" + (f": {clean(reason)}" if reason else "")
    return _act(context, names, as_json, lambda keys: Pause(keys, why))


@drain.command()
@names_argument
@click.option(
    "--without-guard",
    is_flag=True,
    help="Do not stop this drain again for refusals; what is refused is held all the same.",
)
@json_option
@inner_config_option
@click.pass_context
def resume(
    context: click.Context, names: tuple[str, ...], without_guard: bool, as_json: bool
) -> int:
    """Go on: probe now, then a canary, then the rest."""
    return _act(context, names, as_json, lambda keys: Resume(keys, guarded=not without_guard))


def _act(
    context: click.Context,
    names: tuple[str, ...],
    as_json: bool,
    wish: Callable[[tuple[str, ...]], Pause | Resume],
) -> int:
    from posthouse.node_drain_desk import ask_board

    config = _load(context)
    chosen = {view.next_hop for view in _choose(ask_board(config, Show())[0], names)}
    views, live = ask_board(config, wish(tuple(sorted(chosen))))
    return _tell([v for v in views if v.next_hop in chosen], live=live, as_json=as_json)


def _load(context: click.Context) -> Config:
    return load(find_config(context.obj), check_files=False)


def _choose(views: Sequence[NextHopView], names: Sequence[str]) -> list[NextHopView]:
    """Those that are named, all without names. Raises UsageError for a name of none."""
    for name in names:
        if not any(_is_meant(view, name) for view in views):
            known = ", ".join(view.next_hop for view in views[:10])
            raise click.UsageError(f"there is no next hop {name}; known are {known}")
    return [v for v in views if not names or any(_is_meant(v, name) for name in names)]


def _is_meant(view: NextHopView, name: str) -> bool:
    return name == view.next_hop or name.lower().rstrip(".") in view.domains


def _tell(views: Sequence[NextHopView], *, live: bool, as_json: bool) -> int:
    if as_json:
        for view in views:
            click.echo(json.dumps(describe_view(view, live=live)))
    else:
        if not live:
            click.echo("No node is running: this is what its next start will find.")
        for view in views:
            click.echo("\n".join(view_lines(view)))
    return 0 if views else EX_NOTHING


def describe_view(view: NextHopView, *, live: bool) -> dict[str, Any]:
    """One next hop for --json."""
    return {
        "next_hop": view.next_hop,
        "domains": view.domains,
        "state": str(view.state),
        "since": tell_utc(view.since_us) if view.since_us else None,
        "why": view.why,
        "next_probe_at": tell_utc(view.next_probe_us) if view.next_probe_us else None,
        "guarded": view.guarded,
        "running": live,
    }


def view_lines(view: NextHopView) -> Iterator[str]:
    """One next hop for a person."""
    since = f" since {tell_local(view.since_us)}" if view.since_us else ""
    guard = "" if view.guarded else ", without the surge guard"
    yield f"{view.next_hop}: {view.state}{since}{guard}"
    if view.why:
        yield f"    {clean(view.why)}"
    more = f" and {len(view.domains) - 5} more" if len(view.domains) > 5 else ""
    yield f"    for {', '.join(view.domains[:5])}{more}"
    if view.next_probe_us:
        yield f"    next probe in {tell_span(view.next_probe_us / 1e6 - time.time())}"
    if view.state in _HINTS:
        yield f"    → {_HINTS[view.state]}"

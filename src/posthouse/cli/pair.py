"""`posthouse pair`: exchange keys with the other side, once; renew them without a gap.

Four commands in all, two on each side::

    primary$ posthouse pair offer  -c primary.toml --to mx2.example.net
    backup$  posthouse pair accept -c posthouse.toml FILE
    backup$  posthouse pair offer  -c posthouse.toml --to example.com
    primary$ posthouse pair accept -c primary.toml FILE
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from posthouse.cli.main import find_either_config
from posthouse.cli.pair_office import Acceptance, Offer, accept_offer, make_offer
from posthouse.cli.pair_side import Side, read_side
from posthouse.errors import ConfigError

_config = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="primary.toml or posthouse.toml: it says which side we are  [default: the one there is]",
)
_party = click.option("--party", help="Our name  [default: party or hostname of the file]")
_behind = click.option(
    "--behind", is_flag=True, help="We are a backup, and they back up behind us."
)
_rotate = click.option("--rotate", is_flag=True, help="Renew keys; the old ones stay good so long.")
_replace = click.option("--replace", is_flag=True, help="Begin anew; the old keys are void.")


@click.group()
def pair() -> None:
    """Exchange keys with the other side, once.

    Each side makes one small file for the other (offer) and takes the one it
    gets (accept). Nothing is sent: you carry the files, since they hold secrets.
    """


@pair.command()
@_config
@click.option("--to", "partner", required=True, metavar="PARTY", help="The other side's name.")
@_behind
@_party
@click.option("--base-url", help="Where the other side calls us  [default: of the file]")
@click.option("--domain", "domains", multiple=True, help="For these only  [default: all of ours]")
@click.option(
    "--pin/--no-pin",
    "pin",
    default=None,
    help="Bind them to our certificate's key  [default: when it is self-signed]",
)
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The file made.")
@_rotate
@_replace
def offer(
    config_file: Path | None,
    partner: str,
    behind: bool,
    party: str | None,
    base_url: str | None,
    domains: tuple[str, ...],
    pin: bool | None,
    out: Path | None,
    rotate: bool,
    replace: bool,
) -> int:
    """Make the file for the other side, and say what to do with it."""
    side = read_side(find_either_config(config_file), party=party, base_url=base_url, behind=behind)
    carry = out or Path(f"{side.party}-for-{partner}.json")
    if carry.exists():
        raise ConfigError([f"{carry}: is there already; carry it over, or remove it"])
    made = make_offer(
        side,
        partner,
        carry=carry,
        pin=pin,
        domains=domains,
        rotate=rotate,
        replace=replace,
    )
    click.echo("\n".join(tell_offer(side, partner, made)))
    return 0


@pair.command()
@_config
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_behind
@_party
@_rotate
@_replace
def accept(
    config_file: Path | None,
    file: Path,
    behind: bool,
    party: str | None,
    rotate: bool,
    replace: bool,
) -> int:
    """Take the file that the other side made. It is good once."""
    side = read_side(find_either_config(config_file), party=party, behind=behind)
    taken = accept_offer(side, file, rotate=rotate, replace=replace)
    click.echo("\n".join(tell_acceptance(side, file, taken)))
    return 0


# --------------------------------------------------------------------------- words


def tell_offer(side: Side, partner: str, made: Offer) -> Iterator[str]:
    """What was made, and what is to be done next, on which side."""
    what = "new keys" if made.rotated else "an offer"
    yield f"Made {what} of {side.party} for {partner}: {made.carry} (mode 0600, holds secrets)."
    if made.domains:
        yield f"It is for {', '.join(made.domains)}."
    yield f"They will call us at {side.base_url}; if that is not how they reach us: --base-url."
    if made.pinned:
        yield "It pins our certificate's key: make a new offer (--rotate) before that key changes."
    elif side.base_url.startswith("https:"):
        yield "They will verify our certificate as browsers do."
    yield ""
    step = 1
    if made.rotated:
        yield f"{step}. Here: let the running node read it (SIGHUP, systemctl reload)."
        step += 1
    yield f"{step}. Carry {made.carry} to {partner} by a way that nobody else can read, e.g. scp."
    yield f"{step + 1}. There:  posthouse pair accept {'--rotate ' if made.rotated else ''}" + (
        made.carry.name
    )
    yield f"{step + 2}. Here:   rm {made.carry}"
    if made.rotated:
        yield ""
        yield f"Old and new are both good until {partner} has shown the new token."
        return
    yield ""
    yield f"What we keep of it is in {made.own}. {side.file.name} wants, once theirs is here too:"
    yield from _tell_table(side, partner, made.own)


def tell_acceptance(side: Side, file: Path, taken: Acceptance) -> Iterator[str]:
    """What was taken, and what is to be done next."""
    if taken.rotated:
        yield f"Took the new keys of {taken.party}."
        yield "Let the running node read them (SIGHUP, systemctl reload); no gap arises."
        yield f"{file} is used up: rm {file}"
        return
    yield f"Paired with {taken.party}: {taken.theirs} (mode 0600)."
    if taken.domains:
        yield f"They have us back up {', '.join(taken.domains)}."
    yield f"{file} is used up: rm {file}"
    yield ""
    if taken.own is None:
        yield "Now answer with an offer of ours:"
        more = "" if side.owned else " --behind"
        yield f"    posthouse pair offer -c {side.file} --to {taken.party}{more}"
        return
    yield f"Both files are here. {side.file.name} wants:"
    yield from _tell_table(side, taken.party, taken.own, taken.domains, taken.owner)


def _tell_table(
    side: Side, partner: str, own: Path, domains: tuple[str, ...] = (), owner: str = ""
) -> Iterator[str]:
    theirs = side.pairs / f"{partner}.json"
    base = side.file.parent
    yield ""
    yield f"    [[{side.table}]]"
    yield f'    pairing = "{theirs.relative_to(base)}"'
    yield f'    own     = "{own.relative_to(base)}"'
    if side.kind == "primary":
        listed = ", ".join(f'"{name}"' for name in side.domains)
        yield f"    domains = [{listed}]"
        return
    if owner:
        yield ""
        yield f"below that of {owner}, who owns the domains and makes their rosters."
        return
    for name in domains:
        yield ""
        yield "    [[domain]]"
        yield f'    name       = "{name}"'
        yield f'    recipients = {{ primary = "{partner}" }}'

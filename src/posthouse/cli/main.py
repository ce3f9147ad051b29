"""The `posthouse` command. Subcommands are imported when they are used.

Exit codes (sysexits.h where it has one): 0 done; 1 nothing matched or the answer
is no; 2 wrong usage; 69 the node does not answer; 70 our own fault; 74 input or
output failed; 77 not allowed; 78 configuration mistakes.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

import posthouse
from posthouse.errors import ConfigError, PosthouseError

EX_NOTHING: Final = 1
EX_UNAVAILABLE: Final = 69
EX_SOFTWARE: Final = 70
EX_IOERR: Final = 74
EX_NOPERM: Final = 77
EX_CONFIG: Final = 78

DEFAULT_FILES: Final = (Path("posthouse.toml"), Path("/etc/posthouse/posthouse.toml"))
PRIMARY_FILES: Final = (Path("primary.toml"), Path("/etc/posthouse/primary.toml"))

# name → (module, attribute, one line for --help)
COMMANDS: Final = {
    "serve": ("posthouse.cli.serve", "serve", "Run a node in the foreground."),
    "check": ("posthouse.cli.check", "check", "Report every mistake in the configuration."),
    "demo": ("posthouse.cli.demo", "demo", "Rehearse an outage on this machine."),
    "queue": ("posthouse.cli.queue", "queue", "Look into the spool and act on it."),
    "drain": ("posthouse.cli.drain", "drain", "How mail comes home: show, pause, resume."),
    "roster": ("posthouse.cli.roster", "roster", "Make, look into, try and confirm rosters."),
    "primary": ("posthouse.cli.primary", "primary", "What runs beside the primary mail server."),
    "pair": ("posthouse.cli.pair", "pair", "Exchange keys with the other side, once."),
    "agreements": (
        "posthouse.cli.agreements",
        "agreements",
        "Who was promised what: the books, on either side.",
    ),
    "alerts": ("posthouse.cli.alerts", "alerts", "What is wrong, or was."),
    "report": ("posthouse.cli.report", "report", "Outages of a domain's primary and what came."),
    "status": ("posthouse.cli.status", "status", "One screen: domains, next hops, queue, lists."),
}


class LazyCommands(click.Group):
    """Knows names and summaries; imports a command when it is called."""

    def __init__(
        self, *arguments: Any, commands_table: Mapping[str, tuple[str, str, str]], **options: Any
    ) -> None:
        """commands_table: in the shape and in the order of COMMANDS."""
        super().__init__(*arguments, **options)
        self._table = commands_table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click names it)
        """In the order of the table, which is the order of use."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command; None when there is none of that name."""
        if cmd_name not in self._table:
            return None
        module, attribute, _ = self._table[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Summaries without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][2]) for name in self.list_commands(ctx)])


@click.command(
    cls=LazyCommands,
    commands_table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(posthouse.__version__, prog_name="posthouse")
def posthouse_command() -> None:
    """A backup MX that people can trust with their mail.

    Start with `posthouse demo`, then write a posthouse.toml and try
    `posthouse check` and `posthouse serve`.
    """


config_option = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="POSTHOUSE_CONFIG",
    show_envvar=True,
    help="Configuration file  [default: ./posthouse.toml, then /etc/posthouse/posthouse.toml]",
)


def _take_config(context: click.Context, _option: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.obj = value


# For the commands of a group that has `config_option`: -c is understood in either place.
inner_config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    expose_value=False,
    callback=_take_config,
    help="Configuration file.",
)


def find_config(given: Path | None) -> Path:
    """The file to read: the one given, else the first default that exists."""
    if given is not None:
        return given
    for candidate in DEFAULT_FILES:
        if candidate.exists():
            return candidate
    raise ConfigError(
        [f"there is neither ./{DEFAULT_FILES[0]} nor {DEFAULT_FILES[1]}; use --config FILE"]
    )


def find_either_config(given: Path | None) -> Path:
    """As `find_config`, for commands of both sides: the one file there is says which we are."""
    if given is not None:
        return given
    found = [path for path in (*PRIMARY_FILES, *DEFAULT_FILES) if path.exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError([f"{' and '.join(map(str, found))} are there; say which: --config FILE"])
    raise ConfigError(["there is neither primary.toml nor posthouse.toml; use --config FILE"])


primary_config_option = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="POSTHOUSE_PRIMARY_CONFIG",
    show_envvar=True,
    help="primary.toml  [default: ./primary.toml, then /etc/posthouse/primary.toml]",
)


def find_primary_config(given: Path | None) -> Path:
    """The primary's file to read: the one given, else the first default that exists."""
    if given is not None:
        return given
    for candidate in PRIMARY_FILES:
        if candidate.exists():
            return candidate
    raise ConfigError(
        [f"there is neither ./{PRIMARY_FILES[0]} nor {PRIMARY_FILES[1]}; use --config FILE"]
    )


def main() -> None:
    """Run the command line; every failure ends with its text and its exit code."""
    try:
        code = posthouse_command.main(prog_name="posthouse", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        code = 130
    except ConfigError as error:
        click.echo("\n".join(error.mistakes), err=True)
        code = EX_CONFIG
    except BrokenPipeError:  # `posthouse queue list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except PosthouseError as error:
        click.echo(f"posthouse: {error.detail}", err=True)
        code = EX_UNAVAILABLE
    except PermissionError as error:
        click.echo(f"posthouse: {error}; run it as root or as the user of the node", err=True)
        code = EX_NOPERM
    except OSError as error:
        click.echo(f"posthouse: {error}", err=True)
        code = EX_IOERR
    sys.exit(code)

"""The table of replies as docs/replies.md: `python -m posthouse.domain.replies_text`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from posthouse.domain.reply_table import ROWS, Effect, Row

_HEAD: Final = """\
# What a reply of the primary means

This page is printed from `posthouse.domain.reply_table` (`make docs-replies`); a test holds them
equal.

The first row that matches decides. A row with codes *and* texts matches by either. Texts are
parts of the reply in small letters; they count where the reply has no enhanced code or a vague one
(x.0.0, x.5.0, x.7.1), with * beside any. *Deferred* waits by `relay.retry`; *held* waits for a
person, with the reply and the reason word in front of it; *blocked* leaves the mail queued and
says that the next hop refuses us. Nobody is bounced.

What it tells of the next hop: *slower* pauses and lowers the number of sessions; five times
*trouble* in a row without a delivery make it down; *unclear* asks by a quick probe whether we or
one sender were meant.
"""


def format_replies() -> str:
    """The whole page."""
    return "\n".join([*_HEAD.splitlines(), "", *_format_rows()]) + "\n"


def _format_rows() -> Iterator[str]:
    yield "| no. | stage | reply | enhanced code or text | outcome | reason | next hop | source |"
    yield "|---|---|---|---|---|---|---|---|"
    for number, row in enumerate(ROWS, start=1):
        cells = (
            str(number),
            ", ".join(stage.upper() for stage in row.stages) or "any",
            ", ".join(_tell_code(code) for code in row.codes) or "any",
            _tell_signs(row),
            row.fate.value,
            row.reason or "-",
            "-" if row.effect is Effect.NONE else row.effect.value,
            row.source.replace("|", "\\|"),
        )
        yield f"| {' | '.join(cells)} |"


def _tell_code(code: int) -> str:
    return str(code) if code >= 100 else f"{code}xx"


def _tell_signs(row: Row) -> str:
    signs = ["none" if sign == "-" else f"x.{sign}".rstrip(".") for sign in row.enhanced]
    signs += [f'"{text}"' for text in row.texts]
    return (", ".join(signs) + (" *" if row.beside and row.texts else "")) or "any"


if __name__ == "__main__":
    print(format_replies(), end="")

"""Postfix's lookup tables without a Postfix: written, indexed, asked.

Postfix waits until what it reads is two seconds old, lest it reads half a file;
files are made to look old here.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from peers.processes import find_program


class Maps:
    """A directory with an empty main.cf and the tables of one test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put("main.cf", "")

    def put(self, name: str, text: str) -> Path:
        """Write a table (or another file) that looks old; a new text has a new time."""
        path = self.root / name
        before = path.stat().st_mtime if path.exists() else 1_000_000_000
        path.write_text(text)
        os.utime(path, (before + 10, before + 10))
        return path

    def index(self, table: str, path: Path) -> None:
        """Make the index of a table, as its operator does."""
        self._postmap(f"{table}:{path}")

    def ask(self, table: str, path: Path, keys: list[str]) -> set[str]:
        """Which of the keys the table finds, by `postmap -q`."""
        found = self._postmap("-q", "-", f"{table}:{path}", given="\n".join(keys) + "\n")
        return {line.partition("\t")[0] for line in found.splitlines()}

    def _postmap(self, *arguments: str, given: str = "") -> str:
        done = subprocess.run(
            [find_program("postmap", "postfix"), "-c", str(self.root), *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.stderr:  # its exit code only says whether anything was found
            raise AssertionError(done.stderr)
        return done.stdout

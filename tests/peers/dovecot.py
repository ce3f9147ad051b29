"""A throw-away Dovecot with a passwd-file, for what `doveadm` tells. Needs root, as Dovecot does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from peers.processes import PeerFailed, Running, find_program, wait_until

_CONFIG: Final = """\
base_dir = {root}/run
state_dir = {root}/state
instance_name = posthouse-test
log_path = {root}/log
protocols =
ssl = no
mail_location = maildir:{root}/mail/%u
passdb {{
  driver = passwd-file
  args = username_format=%u {root}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {root}/users
  default_fields = uid=65534 gid=65534 home={root}/mail/%u
}}
service auth {{
  unix_listener auth-userdb {{
    mode = 0600
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0600
  }}
}}
"""


class Dovecot:
    """One instance; `config` is what `doveadm -c` takes."""

    def __init__(self, users: Iterable[str]) -> None:
        # A short path: names of Unix sockets end after 107 octets.
        self.root = Path(tempfile.mkdtemp(prefix="dovecot-"))
        self.root.chmod(0o755)
        self.config = self.root / "dovecot.conf"
        self.config.write_text(_CONFIG.format(root=self.root))
        self.set_users(users)
        program = find_program("dovecot", "dovecot-core")
        self._running = Running(
            [program, "-F", "-c", str(self.config)], output=self.root / "output"
        )
        try:
            wait_until((self.root / "run" / "auth-userdb").exists, what="Dovecot's sockets")
        except PeerFailed:
            self.close()
            raise

    def set_users(self, users: Iterable[str]) -> None:
        """Replace the users; Dovecot reads the file again by itself."""
        text = "".join(f"{user}:{{PLAIN}}secret\n" for user in users)
        (self.root / "users").write_text(text)

    def close(self) -> None:
        """Stop it and remove its files."""
        self._running.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

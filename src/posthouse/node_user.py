"""Who the node runs as, and the directory it owns.

Started as root it binds its ports and then becomes `user` for good; nothing
that talks to strangers ever runs as root when a user is named.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import time
from pathlib import Path

from posthouse.errors import ConfigError, StorageBusy


def find_user(name: str) -> pwd.struct_passwd:
    """The account called `name`. Raises ConfigError when there is none."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ConfigError([f"user: there is no user {name}; create it or name another"]) from None


def prepare_data_dir(data_dir: Path, account: pwd.struct_passwd | None) -> None:
    """Make data_dir and its run/, mode 0700, owned by `account` (None: by whoever we are).

    What an earlier start as somebody else left inside is handed over too.
    Raises ConfigError when that is impossible.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        if account is not None and os.geteuid() == 0:
            _hand_over(data_dir, account)
        if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "not ours to write")
    except OSError as error:
        raise ConfigError([f"data_dir: {data_dir} cannot be used: {error.strerror}"]) from error


def _hand_over(data_dir: Path, account: pwd.struct_passwd) -> None:
    if os.stat(data_dir).st_uid == account.pw_uid == os.stat(data_dir / "run").st_uid:
        return
    os.chown(data_dir, account.pw_uid, account.pw_gid)
    for directory, names, files in os.walk(data_dir):
        for name in (*names, *files):
            os.chown(
                os.path.join(directory, name), account.pw_uid, account.pw_gid, follow_symlinks=False
            )


def become(account: pwd.struct_passwd) -> None:
    """Give up root for good. A no-op when we are that user already.

    Raises ConfigError when we are neither root nor that user.
    """
    if os.geteuid() == account.pw_uid and os.getuid() == account.pw_uid:
        return
    if os.geteuid() != 0:
        raise ConfigError(
            [f"user: {describe_self()} cannot become {account.pw_name}; start as root"]
        )
    if account.pw_name:
        os.initgroups(account.pw_name, account.pw_gid)
    else:
        os.setgroups([account.pw_gid])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    os.environ["HOME"] = account.pw_dir
    os.environ["USER"] = os.environ["LOGNAME"] = account.pw_name


def find_owner(path: Path) -> pwd.struct_passwd:
    """The account that owns `path`, without a name if the system knows none. Raises OSError."""
    status = os.stat(path)
    try:
        return pwd.getpwuid(status.st_uid)
    except KeyError:
        return pwd.struct_passwd(("", "x", status.st_uid, status.st_gid, "", "/", ""))


def describe_self() -> str:
    """user:group of this process, for the log."""
    user: int | str = os.geteuid()
    group: int | str = os.getegid()
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(os.geteuid()).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(os.getegid()).gr_name
    return f"{user}:{group}"


class NodeLock:
    """Held by the one node of a data directory, from start to end; dies with its holders."""

    def __init__(self, data_dir: Path, *, wait_seconds: float = 0.0) -> None:
        """Raises StorageBusy when it is taken for so long, OSError when it cannot be made."""
        self.fd = os.open(_lock_path(data_dir), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(self.fd)
                    raise StorageBusy(f"another node uses {data_dir}") from None
            time.sleep(0.05)

    def release(self) -> None:
        """Let others have the directory (once every process that inherited it did or ended)."""
        os.close(self.fd)


def is_locked(data_dir: Path) -> bool:
    """Tell whether a node (or an operator's command) has the directory. Creates nothing."""
    try:
        fd = os.open(_lock_path(data_dir), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _lock_path(data_dir: Path) -> Path:
    return data_dir / "run" / "node.lock"

"""Who the node runs as, and the directory it owns.

Started as root it binds its ports and then becomes `user` for good; nothing
that talks to strangers ever runs as root when a user is named.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from posthouse.errors import ConfigError, StorageBusy
from posthouse.log_sink import clean


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
    """Give the directory and what is in it to `account`, never following a link.

    Whoever owned it before may have laid links to what is not his to give away.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if not is_under_roots_control(data_dir):
        flags |= os.O_NOFOLLOW
    top = os.open(data_dir, flags)
    try:
        run = os.stat("run", dir_fd=top, follow_symlinks=False)
        if os.fstat(top).st_uid == account.pw_uid == run.st_uid:
            return
        os.fchown(top, account.pw_uid, account.pw_gid)
        for _, names, files, directory in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            for name in (*names, *files):
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                    continue  # known by another name elsewhere
                os.chown(
                    name, account.pw_uid, account.pw_gid, dir_fd=directory, follow_symlinks=False
                )
    finally:
        os.close(top)


def is_under_roots_control(path: Path) -> bool:
    """Tell whether only root can say what stands at `path`, its parents included."""
    below = path.absolute()
    for above in below.parents:
        status = os.lstat(above)
        loose = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode)
        if status.st_uid != 0 or (loose and not _is_kept_for_root(status, below)):
            return False
        below = above
    return True


def _is_kept_for_root(directory: os.stat_result, entry: Path) -> bool:
    """In a directory like /tmp nobody else can rename or remove what is root's."""
    try:
        return bool(directory.st_mode & stat.S_ISVTX) and os.lstat(entry).st_uid == 0
    except FileNotFoundError:
        return False


def hand_over_file(path: Path, account: pwd.struct_passwd) -> None:
    """As root: make `path` or give it to `account`, where nobody else could have laid a link.

    In a directory that others may write to nothing is done: the account has to be able
    to make the file by itself. Raises OSError.
    """
    if os.geteuid() != 0 or not is_under_roots_control(path):
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o640)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            os.fchown(fd, account.pw_uid, -1)
    finally:
        os.close(fd)


@contextlib.contextmanager
def acting_as(account: pwd.struct_passwd | None) -> Iterator[None]:
    """For a while be allowed no more than `account`: opening a path as root would follow its links.

    None, or when we are not root: nothing changes.
    """
    if account is None or os.geteuid() != 0 or account.pw_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


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

    def __init__(
        self,
        data_dir: Path,
        *,
        wait_seconds: float = 0.0,
        what: str = "another node",
        account: pwd.struct_passwd | None = None,
    ) -> None:
        """Raises StorageBusy when it is taken for so long, OSError when it cannot be made.

        what: who we are, for those who find it taken. account: who gets a fresh
        file, for root before it steps down.
        """
        self.fd = _open_lock(data_dir, account)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(self.fd, 100, 0).decode("ascii", "replace").strip()
                    os.close(self.fd)
                    pid, _, name = clean(holder).partition(" ")
                    told = f" (pid {pid})" if pid else ""
                    raise StorageBusy(f"{name or 'another node'} uses {data_dir}{told}") from None
            else:
                os.ftruncate(self.fd, 0)
                os.pwrite(self.fd, f"{os.getpid()} {what}\n".encode(), 0)
                return
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


def _open_lock(data_dir: Path, account: pwd.struct_passwd | None) -> int:
    """Open the file without following a link that its directory's owner may have laid."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    path = _lock_path(data_dir)
    run = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fd = os.open(path.name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=run)
        except FileExistsError:
            fd = os.open(path.name, flags, dir_fd=run)
        else:
            if account is not None and os.geteuid() == 0:
                os.fchown(fd, account.pw_uid, account.pw_gid)
    finally:
        os.close(run)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(fd)
        raise PermissionError(errno.EPERM, "is not a file of its own", str(path))
    return fd

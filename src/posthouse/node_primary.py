"""`posthouse primary serve`: binds, steps down from root, starts the one process, watches over it.

The supervisor is the node's (`supervisor`): it owns the listening sockets and
the lock of data_dir, restarts the process when it dies or hangs, and speaks to
systemd. What the process does is in `node_primary_work`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Final

import posthouse
from posthouse import observe
from posthouse.config_primary import load_primary
from posthouse.config_primary_schema import PrimaryConfig
from posthouse.errors import ConfigError
from posthouse.node_primary_work import run_primary
from posthouse.node_process import configure_log, find_loop_factory
from posthouse.node_publishing import load_signer
from posthouse.node_sockets import Listeners, open_listeners
from posthouse.node_user import (
    NodeLock,
    become,
    describe_self,
    find_user,
    prepare_data_dir,
)
from posthouse.supervisor import (
    Duty,
    Heartbeat,
    Supervisor,
    block_signals,
    forbid_new_privileges,
)

LOCK_SECONDS: Final = 5.0


def serve_primary(file: Path) -> int:
    """Run until SIGTERM; returns the exit code. Raises ConfigError, StorageBusy."""
    config = load_primary(file)
    account = find_user(config.user) if config.user is not None else None
    prepare_data_dir(config.data_dir, account)
    configure_log(config, account=account)
    block_signals()
    lock = NodeLock(
        config.data_dir, wait_seconds=LOCK_SECONDS, what="primary serve", account=account
    )
    try:
        listeners = open_listeners(config.https.listen, 1, key="https.listen")
        find_loop_factory()  # imports it while we may still go where our code is installed
        if account is not None:
            become(account)
        forbid_new_privileges()
        _check_access(config)
        load_signer(config)
        keeper = PrimaryKeeper(config, listeners)
        keeper.tell()
        return keeper.run()
    finally:
        lock.release()


class PrimaryKeeper:
    """The supervisor's side: what is in force, and how the process is made."""

    def __init__(self, config: PrimaryConfig, listeners: Listeners) -> None:
        self._config = config
        self._listeners = listeners

    def run(self) -> int:
        """Supervise until told to stop."""
        supervisor = self._supervisor = Supervisor(
            [Duty(name="primary", run=self._run_primary)],
            reload=self._reload,
            release=self._listeners.close,
            grace_seconds=self._config.shutdown_grace.total_seconds(),
        )
        try:
            return supervisor.run()
        finally:
            (self._config.data_dir / "run" / "primary.json").unlink(missing_ok=True)
            observe.note("master", "stopped")

    def _run_primary(self, heartbeat: Heartbeat) -> int:
        return run_primary(self._config, heartbeat, listeners=self._listeners.by_worker[0])

    def tell(self) -> None:
        """Log what was set up; write run/primary.json for the operator's commands."""
        config = self._config
        for warning in config.warnings:
            observe.note("master", f"warning: {warning}")
        addresses = self._listeners.addresses()
        observe.note(
            "master",
            f"posthouse {posthouse.__version__} primary starts: {config.party} at "
            f"{config.base_url}, on {', '.join(addresses)}, as {describe_self()}",
        )
        facts = {
            "pid": os.getpid(),
            "version": posthouse.__version__,
            "config": str(config.file),
            "listen": addresses,
        }
        path = config.data_dir / "run" / "primary.json"
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(facts) + "\n")
        draft.replace(path)

    def _reload(self) -> bool:
        """Read the configuration again; True when the process shall do so too."""
        try:
            new = load_primary(self._config.file)
        except ConfigError as error:
            for mistake in error.mistakes:
                observe.alert("config", mistake)
            observe.note("master", "reload refused: the old configuration stays in force")
            return False
        for name in find_fixed_changes(self._config, new):
            observe.note("master", f"warning: {name} has changed: it counts after a restart")
        self._config = dataclasses.replace(new, data_dir=self._config.data_dir)
        self._supervisor.grace_seconds = new.shutdown_grace.total_seconds()
        configure_log(self._config)
        observe.note("master", "reloading")
        return True


def find_fixed_changes(old: PrimaryConfig, new: PrimaryConfig) -> list[str]:
    """Keys that differ and that a running process cannot take up."""
    fixed: dict[str, tuple[object, object]] = {
        "data_dir": (old.data_dir, new.data_dir),
        "user": (old.user, new.user),
        "https.listen": (old.https.listen, new.https.listen),
    }
    return [name for name, (before, after) in fixed.items() if before != after]


def _check_access(config: PrimaryConfig) -> None:
    """See that what SIGHUP will read again can be read by who we are now. Raises ConfigError."""
    paths = [config.https.certificate, config.https.private_key]
    paths += [path for backup in config.backups for path in (backup.pairing, backup.own)]
    mistakes = [
        f"{path} cannot be read by {describe_self()}; give it to that user (chown)"
        for path in paths
        if path is not None and not os.access(path, os.R_OK)
    ]
    if mistakes:
        raise ConfigError(mistakes)

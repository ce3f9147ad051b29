"""A node: binds, steps down from root, starts its processes and watches over them.

`serve` is the supervisor process: one thread, no event loop, no mail. It owns
the listening sockets and the lock of the data directory; the control process
and the mail workers are forked from it (`node_control`, `node_worker`).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import pwd
from pathlib import Path
from typing import Final

import posthouse
from posthouse import observe
from posthouse.config import load
from posthouse.config_schema import Config
from posthouse.errors import ConfigError
from posthouse.node_control import run_control
from posthouse.node_process import configure_log, find_loop_factory
from posthouse.node_settings import FILES_BESIDE
from posthouse.node_sockets import Listeners, name_sockets, open_listeners, raise_file_limit
from posthouse.node_user import (
    NodeLock,
    become,
    describe_self,
    find_user,
    prepare_data_dir,
)
from posthouse.node_worker import run_worker
from posthouse.supervisor import (
    Duty,
    Heartbeat,
    Supervisor,
    block_signals,
    forbid_new_privileges,
)

# A stopping node or an operator's command holds the directory for a moment longer.
LOCK_SECONDS: Final = 5.0


def serve(file: Path) -> int:
    """Run a node until SIGTERM; returns the exit code. Raises ConfigError, StorageBusy."""
    config = load(file, lists_may_wait=True)
    account = find_user(config.user) if config.user is not None else None
    prepare_data_dir(config.data_dir, account)
    configure_log(config, account=account)
    workers = config.workers or len(os.sched_getaffinity(0))
    block_signals()  # who sees the port open may send them
    # Before the ports: a second node must not take the first one's clients, however shortly.
    lock = NodeLock(config.data_dir, wait_seconds=LOCK_SECONDS, account=account)
    try:
        listeners = open_listeners(config.smtp.listen, workers)
        doors = open_listeners(config.odmr.listen, 1, key="odmr.listen")
        https = open_listeners(config.https.listen, 1, key="https.listen")
        file_limit = raise_file_limit()
        find_loop_factory()  # imports it while we may still go where our code is installed
        if account is not None:
            become(account)
        forbid_new_privileges()
        _check_access(config, account)
        node = Node(config, workers, listeners, doors, https)
        node.tell(file_limit)
        return node.run()
    finally:
        lock.release()


class Node:
    """The supervisor's side of a node: what is in force, and how its processes are made."""

    def __init__(
        self,
        config: Config,
        workers: int,
        listeners: Listeners,
        doors: Listeners,
        https: Listeners,
    ) -> None:
        """listeners: of the workers; doors (ATRN), https (call-backs): of the control process."""
        self._config = config
        self._doors = doors
        self._https = https
        self._workers = workers
        self._listeners = listeners
        self._run_dir = config.data_dir / "run"

    def run(self) -> int:
        """Supervise until told to stop."""
        for stale in self._run_dir.glob("*.sock"):
            stale.unlink()
        duties = [Duty(name="control", run=self._run_control)]
        for index in range(self._workers):
            run = functools.partial(self._run_worker, index)
            duties.append(Duty(name=f"worker {index}", run=run))
        supervisor = self._supervisor = Supervisor(
            duties,
            reload=self._reload,
            release=self._release,
            grace_seconds=self._config.shutdown_grace.total_seconds(),
        )
        # Shared pages stay shared when the collector of a child does not write to them.
        gc.collect()
        gc.freeze()
        try:
            return supervisor.run()
        finally:
            (self._run_dir / "node.json").unlink(missing_ok=True)
            observe.note("master", "stopped")

    def _release(self) -> None:
        self._listeners.close()
        self._doors.close()
        self._https.close()

    def _run_control(self, heartbeat: Heartbeat) -> int:
        listening = name_sockets(self._listeners.by_worker[0])
        self._listeners.close()
        return run_control(
            self._config,
            heartbeat,
            workers=self._workers,
            listening=listening,
            odmr=self._doors.by_worker[0],
            https=self._https.by_worker[0],
        )

    def _run_worker(self, index: int, heartbeat: Heartbeat) -> int:
        self._listeners.close_others(index)
        self._doors.close()
        self._https.close()
        return run_worker(
            self._config,
            heartbeat,
            index=index,
            workers=self._workers,
            listeners=self._listeners.by_worker[index],
            lists_ready=functools.partial(self._supervisor.is_ready, "control"),
        )

    # ------------------------------------------------------------------ what is told

    def tell(self, file_limit: int) -> None:
        """Log what was set up; write run/node.json for the operator's commands."""
        config = self._config
        for warning in config.warnings:
            observe.note("master", f"warning: {warning}")
        if os.geteuid() == 0:
            observe.note("master", 'warning: running as root; set user = "…" to step down')
        wanted = config.smtp.max_connections // self._workers + FILES_BESIDE
        if file_limit < wanted:
            observe.note(
                "master",
                f"warning: {file_limit} open files are allowed, max_connections wants {wanted}: "
                "fewer are taken; raise the limit (LimitNOFILE, ulimit -n)",
            )
        addresses = self._listeners.addresses()
        odmr = self._doors.addresses()
        if odmr:
            observe.note("master", f"mail may be fetched (ATRN) on {', '.join(odmr)}")
        https = self._https.addresses()
        if https:
            observe.note("master", f"paired primaries may call on {', '.join(https)}")
        observe.note(
            "master",
            f"posthouse {posthouse.__version__} starts: {config.hostname}, "
            f"{self._workers} workers, on {', '.join(addresses)}, as {describe_self()}",
        )
        facts = {
            "pid": os.getpid(),
            "version": posthouse.__version__,
            "config": str(config.file),
            "workers": self._workers,
            "listen": addresses,
            "odmr": odmr,
            "https": https,
        }
        draft = self._run_dir / "node.json.new"
        draft.write_text(json.dumps(facts) + "\n")
        draft.replace(self._run_dir / "node.json")

    # ------------------------------------------------------------------ reload

    def _reload(self) -> bool:
        """Read the configuration again; True when the workers shall do so too."""
        try:
            new = load(self._config.file, lists_may_wait=True)
        except ConfigError as error:
            for mistake in error.mistakes:
                observe.alert("config", mistake)
            observe.note("master", "reload refused: the old configuration stays in force")
            return False
        for name in find_fixed_changes(self._config, new):
            observe.note("master", f"warning: {name} has changed: it counts after a restart")
        # A worker that is replaced must find the world its siblings live in.
        self._config = dataclasses.replace(
            new, data_dir=self._config.data_dir, spool=self._config.spool
        )
        self._supervisor.grace_seconds = new.shutdown_grace.total_seconds()
        configure_log(self._config)
        observe.note("master", "reloading")
        return True


def find_fixed_changes(old: Config, new: Config) -> list[str]:
    """Keys that differ and that a running node cannot take up."""
    fixed: dict[str, tuple[object, object]] = {
        "data_dir": (old.data_dir, new.data_dir),
        "user": (old.user, new.user),
        "workers": (old.workers, new.workers),
        "smtp.listen": (old.smtp.listen, new.smtp.listen),
        "odmr.listen": (old.odmr.listen, new.odmr.listen),
        "https.listen": (old.https.listen, new.https.listen),
        "relay.tls": (old.relay.tls, new.relay.tls),
        "relay.ca_file": (old.relay.ca_file, new.relay.ca_file),
        "relay.connect_timeout": (old.relay.connect_timeout, new.relay.connect_timeout),
        "relay.reply_timeout": (old.relay.reply_timeout, new.relay.reply_timeout),
        "[dns]": (old.dns, new.dns),
        "[spool]": (old.spool, new.spool),
    }
    return [name for name, (before, after) in fixed.items() if before != after]


def _check_access(config: Config, account: pwd.struct_passwd | None) -> None:
    """See that what SIGHUP will read again can be read by who we are now. Raises ConfigError."""
    who = "this user" if account is None else account.pw_name
    mistakes = [
        f"{key}: {path} cannot be read by {who}; its group may be allowed to (chgrp, chmod g+r)"
        for key, path in (
            ("smtp.certificate", config.smtp.certificate),
            ("smtp.private_key", config.smtp.private_key),
            ("relay.ca_file", config.relay.ca_file),
        )
        if path is not None and not os.access(path, os.R_OK)
    ]
    if mistakes:
        raise ConfigError(mistakes)
    if not os.access(config.file, os.R_OK):
        observe.note("master", f"warning: {config.file} cannot be read by {who}: SIGHUP will fail")

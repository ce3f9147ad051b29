"""What the kernel tells: the machine, CPU time, memory and disk blocks of a group of processes."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
from importlib import metadata
from pathlib import Path

from peers.processes import find_program, group_members

_TICK = os.sysconf("SC_CLK_TCK")


def describe(directory: Path) -> dict[str, str]:
    """Facts that figures depend on; `directory` is where the queues lie."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cores": str(os.cpu_count()),
        "cpu": cpu[1] if cpu is not None else platform.machine(),
        "memory": f"{int(memory[1]) / 2**20:.1f} GiB" if memory is not None else "unknown",
        "kernel": platform.release(),
        "file system": _file_system(directory),
        "python": platform.python_version(),
        "uvloop": _version("uvloop"),
        "sqlite (apsw)": _version("apsw"),
        "postfix": _postfix_version(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"not installed (sqlite3: {sqlite3.sqlite_version})" if package == "apsw" else "none"


def _postfix_version() -> str:
    import subprocess

    command = [find_program("postconf", "postfix"), "-dh", "mail_version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _file_system(directory: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, point, kind, options, *_ = line.split()
        if directory.resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, f"{kind} on {device} ({options})")
    return best[1]


# --------------------------------------------------------------------------- CPU


def cpu_seconds(group: int) -> float:
    """CPU time of a process group so far: its living members and the dead children of each."""
    total = 0
    for pid in group_members(group):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / _TICK


def stolen_seconds() -> float:
    """CPU time the hypervisor gave to others since boot."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / _TICK


# --------------------------------------------------------------------------- memory


def resident_bytes(pid: int) -> int:
    """RSS now."""
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """Highest RSS since start or `reset_peaks`."""
    return _status(pid, "VmHWM")


def reset_peaks(group: int) -> dict[int, int]:
    """Begin to measure peaks anew; returns pid → RSS now."""
    now = {}
    for pid in group_members(group):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        now[pid] = resident_bytes(pid)
    return now


def grown_bytes(before: dict[int, int]) -> int:
    """By how much the processes of `reset_peaks` rose above what they had then, in all."""
    return sum(max(0, peak_bytes(pid) - had) for pid, had in before.items() if _lives(pid))


def proportional_bytes(pid: int) -> int:
    """PSS: shared pages counted in parts."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else 0


def group_proportional_bytes(group: int) -> int:
    """PSS of a whole process group."""
    return sum(proportional_bytes(pid) for pid in group_members(group))


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else 0


# --------------------------------------------------------------------------- disk


def allocated_bytes(directory: Path) -> int:
    """Blocks of all files and directories below, as `du` counts them."""
    total = directory.lstat().st_blocks
    pending = [str(directory)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                try:
                    total += entry.stat(follow_symlinks=False).st_blocks
                except FileNotFoundError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return total * 512

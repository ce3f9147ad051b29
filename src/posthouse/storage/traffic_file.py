"""The traffic of a primary's backups, in one small file that is written whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from posthouse import observe
from posthouse.storage.whole_files import replace_file, storage_errors

T = TypeVar("T")


def load_traffic(path: Path, kind: type[T]) -> dict[str, T]:
    """What was saved, by party. A file that is not there or damaged: nothing is known."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, kind])  # type: ignore[valid-type]
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        observe.trouble("https", f"{path} cannot be read: begun anew", error)
        return {}


def save_traffic(path: Path, traffic: Mapping[str, object]) -> None:
    """Write it anew. Raises StorageError."""
    with storage_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, [msgspec.json.encode(traffic)])

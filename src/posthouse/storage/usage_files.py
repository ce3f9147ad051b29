"""What each worker has of the domains with quotas: one small file a worker, swapped whole.

A file that cannot be written or read is reported once and counts as it was:
the quota is a little off, mail goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from posthouse import observe
from posthouse.ports_quota import Usage

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Usage]).decode


class UsageFiles:
    """See `ports_quota.UsageBoard`. For worker `index` of `workers`, in `directory`."""

    def __init__(self, directory: Path, *, index: int, workers: int) -> None:
        self._own = directory / f"usage-{index}.json"
        self._others = [
            directory / f"usage-{other}.json" for other in range(workers) if other != index
        ]
        self._known: dict[Path, dict[str, Usage]] = {}
        self._trouble = False

    def publish(self, usage: Mapping[str, Usage]) -> None:
        """See the port."""
        draft = self._own.with_suffix(".new")
        try:
            draft.write_bytes(_encode(dict(usage)))
            draft.replace(self._own)
        except OSError as error:
            self._tell(error)
        else:
            self._trouble = False

    def read_others(self) -> Mapping[str, Usage]:
        """See the port."""
        total: dict[str, Usage] = {}
        for path in self._others:
            try:
                self._known[path] = _decode(path.read_bytes())
            except FileNotFoundError:
                self._known.pop(path, None)  # it has nothing to say yet
            except (OSError, msgspec.MsgspecError, ValueError) as error:
                self._tell(error)
            for domain, usage in self._known.get(path, {}).items():
                total.setdefault(domain, Usage()).add(usage)
        return total

    def _tell(self, error: BaseException) -> None:
        if not self._trouble:
            self._trouble = True
            observe.trouble("quota", "what other workers have is not known exactly", error)

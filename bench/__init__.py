"""Side-by-side benchmarks: every figure a ratio to a throw-away Postfix on the same machine.

`python -m bench` runs them; docs/benchmarks.md tells how to read them and why
the settings are fair. The peers come from tests/peers.
"""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parents[1] / "tests")
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)

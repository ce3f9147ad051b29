"""Check that links within the documents lead somewhere: files, and headings in them."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.parse
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)


def list_documents() -> list[Path]:
    """Every Markdown file that is, or is about to be, in the repository."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", "*.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).exists()]


@cache
def read_anchors(document: Path) -> frozenset[str]:
    """The anchors of a document's headings, as code hosts make them."""
    anchors: set[str] = set()
    for match in HEADING.finditer(FENCE.sub("", document.read_text("utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (numbered := f"{anchor}-{number}" if number else anchor) in anchors:
            number += 1
        anchors.add(numbered)
    return frozenset(anchors)


def find_broken(document: Path) -> list[str]:
    """Links of one document that lead nowhere, one line each."""
    text = CODE.sub(
        "", FENCE.sub(lambda match: "\n" * match[0].count("\n"), document.read_text("utf-8"))
    )
    broken = []
    for match in LINK.finditer(text):
        url = urllib.parse.urlsplit(match[1])
        if url.scheme or url.netloc:
            continue
        path = urllib.parse.unquote(url.path)
        target = (document.parent / path).resolve() if path else document
        missing = not target.exists()
        if not missing and url.fragment and target.suffix == ".md":
            missing = url.fragment not in read_anchors(target)
        if missing:
            line = text.count("\n", 0, match.start()) + 1
            broken.append(f"{document.relative_to(ROOT)}:{line}: {match[1]} leads nowhere")
    return broken


def main() -> int:
    """Print every broken link; 1 when there are any."""
    documents = list_documents()
    broken = [line for document in documents for line in find_broken(document)]
    print(
        "\n".join(broken) if broken else f"links of {len(documents)} documents: all lead somewhere"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Recipients files and look-ups under arbitrary input."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from posthouse.domain.finding import Finding
from posthouse.domain.recipients import (
    MAX_REPORTED_MISTAKES,
    Fold,
    RecipientFile,
    fold,
    fold_both,
)
from posthouse.errors import ConfigError
from posthouse.storage.recipient_lists import RecipientIndexes

LOCALS = st.from_regex(r"[a-z0-9_][a-z0-9_.=#$!-]{0,30}", fullmatch=True)
FOLDS = st.builds(
    Fold,
    case=st.sampled_from(["lower", "preserve"]),
    delimiters=st.text("+-=#_", max_size=3),
    dots=st.sampled_from(["keep", "drop"]),
)


@given(
    listed=st.sets(LOCALS, max_size=40),
    others=st.sets(LOCALS, max_size=40),
    tag=LOCALS,
    with_domain=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", " OK\n", "\tx y\r\n"]),
)
def test_listed_are_found_and_others_not(
    listed: set[str], others: set[str], tag: str, with_domain: bool, end: str
) -> None:
    """From file to index: every listed one is found in any case and with a tag, others never."""
    domain = "@Example.Com" if with_domain else ""
    with tempfile.TemporaryDirectory() as root:
        source = Path(root, "list")
        source.write_bytes("".join(f"{local}{domain}{end}" for local in listed).encode())
        indexes = RecipientIndexes(Path(root, "recipients"))
        indexes.prepare()
        facts = indexes.publish("example.com", str(source), now_us=0, refuse_empty=False)
        directory = indexes.open("example.com")
    assert facts is not None
    assert facts.entries == len(listed)
    assert directory is not None
    for local in listed:
        for spelled in (local, local.upper(), local.title(), f"{local}+{tag}"):
            assert directory.find(spelled).finding is Finding.VOUCHED
    for local in others - listed:
        assert directory.find(local).finding is Finding.ABSENT


@given(
    data=st.binary(max_size=4000)
    | st.text(max_size=2000).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_file_is_read_or_refused(data: bytes) -> None:
    """Whatever stands in a file: an index with what it gave, or bounded mistakes."""
    with tempfile.TemporaryDirectory() as root:
        source = Path(root, "list")
        source.write_bytes(data)
        indexes = RecipientIndexes(Path(root, "recipients"))
        indexes.prepare()
        facts, mistakes = None, []
        try:
            facts = indexes.publish("example.com", str(source), now_us=0, refuse_empty=False)
        except ConfigError as error:
            mistakes = error.mistakes
        directory = indexes.open("example.com")
    if facts is None:
        assert directory is None
        assert 0 < len(mistakes) <= MAX_REPORTED_MISTAKES + 1
        assert all(len(line) < 300 + len(str(source)) for line in mistakes)
        return
    assert directory is not None
    assert directory.verify()
    texts = list(
        RecipientFile("example.com").read_lines(data.decode("utf-8", "surrogateescape").split("\n"))
    )
    assert facts.entries == len(set(texts))


@given(content=st.text(st.characters(), max_size=60), how=FOLDS)
def test_canonical_text_is_settled(content: str, how: Fold) -> None:
    """Folding is total, a folded cut text holds no delimiter behind position 0, pairs agree."""
    kept, cut = fold_both(content, how)
    assert kept == fold(content, how, cut=False)
    assert cut == fold(content, how, cut=True)
    assert not any(delimiter in cut[1:] for delimiter in how.delimiters if how.dots == "keep")

"""Reading the recipients text file."""

from __future__ import annotations

import pytest

from posthouse.domain.recipients import (
    MAX_COUNTED_MISTAKES,
    MAX_REPORTED_MISTAKES,
    Fold,
    RecipientFile,
)


def read(*lines: str, domain: str = "example.com") -> tuple[list[str], RecipientFile]:
    file = RecipientFile(domain)
    return list(file.read_lines(lines)), file


def mistakes_of(*lines: str) -> list[str]:
    file = read(*lines)[1]
    return file.describe_mistakes("f")


def test_every_way_to_name_a_recipient() -> None:
    """Addresses, local parts, quoted ones, values, comments and blank lines are read as told."""
    texts, file = read(
        "\ufeff# made by hand\r",
        "",
        "   ",
        "\t# indented comment",
        "Alice@Example.COM OK",
        "bob",
        "carol@example.com.\tpermit\r",
        '"marta \\"lee"@example.com x y z',
        '"a@b"',
        '"d@e"@example.com',
        "o'neil!#$%&*/=?^_`{|}~-@example.com",
        "old..dots.@example.com",
        "zo\xeb@example.com",
    )
    assert not file.mistakes
    assert texts == [
        "alice",
        "bob",
        "carol",
        'marta "lee',
        "a@b",
        "d@e",
        "o'neil!#$%&*/=?^_`{|}~-",
        "old..dots.",
        "zo\xeb",
    ]
    assert (file.entries, file.skipped, file.catch_all) == (9, 0, False)


def test_other_domains_are_skipped_and_counted() -> None:
    """One table may serve many domains."""
    texts, file = read("a@example.net OK", "b@example.com OK", "@example.net OK", "c@[192.0.2.1]")
    assert texts == ["b"]
    assert file.skipped == 3
    assert not file.catch_all
    assert not file.mistakes


def test_catch_all() -> None:
    """@domain means every local part."""
    texts, file = read("@Example.com OK")
    assert texts == []
    assert file.catch_all
    assert not file.mistakes


def test_international_domain_in_either_form() -> None:
    """U-labels and A-labels name the same domain."""
    texts, file = read(
        "a@caf\xe9.example",
        "b@XN--CAF-DMA.example",
        "c@CAF\xc9.example.",
        domain="xn--caf-dma.example",
    )
    assert texts == ["a", "b", "c"]
    assert not file.mistakes


def test_options() -> None:
    """Options above the recipients say how they are read."""
    texts, file = read(
        "% delimiters = +-+", "%dots=drop", "%  case = preserve  ", "A.b-c.d@example.com"
    )
    assert file.fold == Fold(case="preserve", delimiters="+-", dots="drop")
    assert texts == ["Ab-c.d"]
    assert not file.mistakes


def test_no_delimiters() -> None:
    """An empty set of delimiters can be asked for."""
    assert read("% delimiters =", "a")[1].fold.delimiters == ""


def test_postfix_continuation_line_is_a_value() -> None:
    """White space at the start continues the line above, as in Postfix tables."""
    texts, file = read("alice@example.com", "   # note", "    OK", "bob@example.com OK")
    assert texts == ["alice", "bob"]
    assert not file.mistakes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  bob", "white space before the recipient"),
        ("  bob@example.com", "white space before the recipient"),
        ("a@b@example.com", "not an address"),
        ("<alice@example.com>", "not an address"),
        ("alice,bob", "not an address"),
        ("alice@example.com,", "not an address"),
        ("alice@", "not an address"),
        ("@", "not a domain"),
        ("@-", "not a domain"),
        ('"open@example.com', "not an address"),
        ('""@example.com', "not an address"),
        ("a\x00b", "not an address"),
        ("a\xa0b", "invisible character"),
        ("a\x85b", "invisible character"),
        ("al\udcffice", "not UTF-8"),
        ("a\rb", "carriage return"),
        ("alice@example.com OK\rbob@example.com OK\r", "carriage return"),
        ("x" * 256, "over 255 octets"),
        ("x" * 5000, "longer than 4096 characters"),
        ("alice@example.com " + "x" * 5000, "longer than 4096 characters"),
        ("/^alice@/", "regular expression"),
        ("!/^x/i", "regular expression"),
        ("*", "for a catch-all write @example.com"),
        ("*@example.com", "for a catch-all write @example.com"),
        ("example.com", "for a catch-all write @example.com"),
        ("%", "% name = value"),
        ("% delimiters + ", "% name = value"),
        ("% delimiters = a", "delimiters are"),
        ("% delimiters = .", "delimiters are"),
        ("% delimiters = + -", "delimiters are"),
        ("% case = upper", "case is lower or preserve"),
        ("% dots = 1", "dots is keep or drop"),
        ("% colour = red", "unknown option 'colour'"),
    ],
)
def test_mistakes(line: str, said: str) -> None:
    """What cannot be read without a doubt is reported with its line."""
    found = mistakes_of("# one", line)
    assert len(found) == 1
    assert found[0].startswith("f:2: ")
    assert said in found[0]
    assert found[0].isprintable()


def test_option_below_a_recipient_or_twice() -> None:
    """An option that would come too late, or contradict another, is a mistake."""
    assert "above the first recipient" in mistakes_of("a", "% case = lower")[0]
    assert "above the first recipient" in mistakes_of("@example.com", "% case = lower")[0]
    assert "given twice" in mistakes_of("% case = lower", "% case = preserve")[0]


def test_nothing_left_of_a_local_part() -> None:
    """A recipient whose canonical text is empty is a mistake."""
    assert "nothing is left" in mistakes_of("% dots = drop", "..")[0]


def test_file_for_other_domains_only() -> None:
    """A file without a line for its domain is taken for the wrong file, not for an empty domain."""
    assert mistakes_of("a@example.net", "b@example.org") == [
        "f: no line is for example.com, 2 for other domains: the wrong file?"
    ]
    assert mistakes_of("# nobody") == []


def test_all_mistakes_up_to_a_bound() -> None:
    """Every mistake is reported with its line until nobody would read on."""
    some = mistakes_of("a", *["<>"] * 3)
    assert [line.split(": ")[0] for line in some] == ["f:2", "f:3", "f:4"]
    many = mistakes_of(*["<>"] * 50)
    assert len(many) == MAX_REPORTED_MISTAKES + 1
    assert many[-1] == "f: and 30 more mistakes"
    endless = mistakes_of(*["<>"] * 5000)
    assert (
        endless[-1]
        == f"f: and at least {MAX_COUNTED_MISTAKES - MAX_REPORTED_MISTAKES} more mistakes"
    )

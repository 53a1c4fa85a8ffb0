"""The prose script: what it sees, and that nothing is left for it to list."""

import pytest

from tests.tools import prose


@pytest.mark.parametrize(
    "source, phrases",
    [
        ('raise ValueError(f"{key} is no section")', ["is no section"]),
        ('log.info("stopped; the same command goes on")', ["goes on"]),
        ('help="Of the rate."', ["Of the"]),
        ("x = 1  # of the decoder\n", ["# of the"]),
        ('"""A table beside\n\nthe text behind it."""', ["behind", "beside"]),
        (
            '"""Writes.\n\n    Args:\n      name: of the model; `b` bits an element.\n    """',
            ["name: of the", "bits an element"],
        ),
        ('row["beside"], {"told": 1}', []),
        ('f"there is no {beside} file"', []),
        ("# The step\n# of the last phase.\n", []),
    ],
)
def test_phrases_are_seen_in_comments_and_strings(source, phrases):
    listed = [f for line, text in prose.texts_of(source) for f in prose.in_text("a.py", line, text)]
    assert sorted(fault.phrase for fault in listed) == sorted(phrases)


def test_every_binding_is_seen():
    source = "def made(told, *, given):\n    self._found = [found for found in told]\nused(made=1)"
    names = sorted(name for _, name in prose.names_of(source))
    assert names == ["_found", "found", "given", "made", "told"]


def test_nothing_is_left():
    assert not list(map(str, prose.faults([])))

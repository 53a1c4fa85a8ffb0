"""Text modes of a conditional model: lines hold sources, or source and text."""

import io

import pytest

from jvae import modes
from jvae.errors import ConfigError


def test_lines_of_source_and_text():
    assert modes.pairs_of(["a b\tc", "d\te f"]) == (["a b", "d"], ["c", "e f"])
    with pytest.raises(ConfigError, match="line 2 has 0 tabs: .* expected source<TAB>text"):
        modes.pairs_of(["a\tb", "c"])
    with pytest.raises(ConfigError, match="line 1 has 2 tabs"):
        modes.pairs_of(["a\tb\tc"])


def test_sources_come_from_words_or_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a b\nc\n"))
    assert modes.sources_of(["x"]) == ["x"]
    assert modes.sources_of([]) == ["a b", "c"]
    with pytest.raises(ConfigError, match="no source to sample for: give --text="):
        modes.sources_of([])

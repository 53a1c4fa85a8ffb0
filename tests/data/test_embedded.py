"""The embedded corpus from the cache is the one that is drawn."""

import os

import numpy as np
import pytest

from jvae.data import embedded, grammar


@pytest.fixture
def draws(monkeypatch):
    """The corpora that are drawn."""
    drawn, plain = [], grammar.corpus

    def corpus(name, n):
        drawn.append((name, n))
        return plain(name, n)

    monkeypatch.setattr(grammar, "corpus", corpus)
    return drawn


def test_it_is_drawn_once(draws, tmp_path):
    sentences = grammar.corpus("valid", 60)
    draws.clear()
    for _ in range(2):
        actual = embedded.split("valid", 60, tmp_path)
        assert actual.texts == [sentence.text for sentence in sentences]
        np.testing.assert_array_equal(
            actual.log_prob_n, [sentence.log_prob for sentence in sentences]
        )
    assert draws == [("valid", 60)]
    # Another split, another length, another grammar.
    embedded.split("test", 60, tmp_path), embedded.split("valid", 50, tmp_path)
    assert draws[1:] == [("test", 60), ("valid", 50)]


def test_another_grammar_is_another_corpus(draws, tmp_path, monkeypatch):
    embedded.split("valid", 20, tmp_path)
    monkeypatch.setattr(embedded, "_grammar", lambda: "another")
    embedded.split("valid", 20, tmp_path)
    assert len(draws) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other"])
def test_a_damaged_file_is_drawn_again(draws, tmp_path, damage):
    expected = embedded.split("valid", 40, tmp_path)
    (path,) = (tmp_path / "embedded").iterdir()
    whole = path.read_bytes()
    at = whole.index(expected.texts[5].encode())
    path.write_bytes(
        dict(
            flipped=whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
            cut=whole[: len(whole) // 2],
            empty=b"",
            other=b"not an archive",
        )[damage]
    )
    again = embedded.split("valid", 40, tmp_path)
    assert again.texts == expected.texts and len(draws) == 2
    assert path.read_bytes() == whole


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(draws, tmp_path):
    tmp_path.chmod(0o500)
    assert len(embedded.split("valid", 20, tmp_path).texts) == 20


def test_a_cache_that_is_no_folder(tmp_path):
    (tmp_path / "cache").write_text("")
    assert len(embedded.split("valid", 20, tmp_path / "cache").texts) == 20

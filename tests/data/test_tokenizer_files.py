"""Tokenizer files that would end the process, or give other ids than they say."""

import copy
import json

import pytest

from jvae.data import tokenizers
from jvae.data.tokenizer_files import MOST_IDS
from jvae.errors import DataError

WORDS = json.loads(tokenizers.train_word_level(["a b c d"]).backend.to_str())
BYTES = json.loads(tokenizers.train_bpe(["a b c d"], 300).backend.to_str())
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def changed(tree, *path_and_value):
    tree = copy.deepcopy(tree)
    *path, last, value = path_and_value
    place = tree
    for key in path:
        place = place[key]
    place[last] = value
    return tree


def load(folder, tree):
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    (folder / "tokenizer.json").write_bytes(text)
    return tokenizers.load(folder, "decoder")


CASES = {
    "huge id": (changed(WORDS, "model", "vocab", "a", 4_000_000_000), "'a' the id 4000000000"),
    "huge id of bytes": (changed(BYTES, "model", "vocab", "a", MOST_IDS), "expected 0 to 4,194,30"),
    "more bits than an int": (changed(WORDS, "model", "vocab", "a", 2**70), "'a' the id"),
    "huge added id": (changed(WORDS, "added_tokens", 0, "id", 4_000_000_000), "added_tokens gives"),
    "negative": (changed(WORDS, "model", "vocab", "a", -1), "'a' the id -1"),
    "no number": (changed(WORDS, "model", "vocab", "a", "x"), "'a' the id x"),
    "no whole number": (changed(WORDS, "model", "vocab", "a", 4.5), "'a' the id 4.5"),
    "twice": (changed(WORDS, "model", "vocab", "b", 4), "the same id 4"),
    "moved marker": (changed(WORDS, "added_tokens", 0, "id", 6), "'<pad>' has id 6"),
    "no vocabulary": (changed(WORDS, "model", "vocab", 3), "has no vocabulary"),
    "no model": (changed(WORDS, "model", None), "has no vocabulary"),
    "added": (changed(WORDS, "added_tokens", {"a": 1}), "is not a list of tokens"),
    "added things": (changed(WORDS, "added_tokens", [3]), "is not a list of tokens"),
    "no object": ([WORDS], "is not a JSON object"),
    "deep": (b"[" * 100_000, "cannot be read"),
    "cut": (json.dumps(WORDS).encode()[:-9], "cannot be read"),
    "empty": (b"", "cannot be read"),
    "no text": (b"\xff\xfe{}", "cannot be read"),
    "broken pattern": (
        changed(WORDS, "pre_tokenizer", SPLIT | {"pattern": {"Regex": "("}}),
        "end pattern with unmatched parenthesis",
    ),
    "exponential pattern": (
        changed(WORDS, "pre_tokenizer", SPLIT | {"pattern": {"Regex": "(a+)+$"}}),
        "retry-limit-in-match over",
    ),
    "exponential pattern of letters": (
        changed(WORDS, "pre_tokenizer", SPLIT | {"pattern": {"Regex": r"(\p{L}+ ?)+\d"}}),
        "retry-limit-in-match over",
    ),
    "panic": (
        changed(WORDS, "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "Cannot parse precompiled_charsmap",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_damaged_files(name, tmp_path, capfd):
    tree, message = CASES[name]
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, tree)
    assert "copy" in str(caught.value).lower() and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the notes of a panic


def test_ids_of_a_vocabulary_file(tmp_path):
    vocab = BYTES["model"]["vocab"] | {"Ġzz": 4_000_000_000}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(DataError, match=r"vocab.json: the vocabulary gives 'Ġzz' the id"):
        tokenizers.load(tmp_path, "decoder")


def test_a_closed_vocabulary(tmp_path):
    """Without an unknown token it reads what it knows, and names what it does not."""
    tree = changed(WORDS, "model", "unk_token", "[absent]")
    del tree["model"]["vocab"]["<unk>"]
    tree["added_tokens"] = tree["added_tokens"][:3]
    tree["model"]["vocab"]["e"] = 3
    tokenizer = load(tmp_path, tree)
    assert len(tokenizer.encode_batch(["a b"])[0]) == 4
    with pytest.raises(DataError, match="Missing .UNK. token"):
        tokenizer.encode_batch(["a z"])


def test_a_vocabulary_is_known_by_its_tokens_and_ids():
    one, other = (tokenizers.train_word_level([text]) for text in ("a b c", "a a b c"))
    assert one.vocabulary_sha256 == other.for_role("encoder").vocabulary_sha256
    permuted = tokenizers.train_word_level(["b b a c"])
    assert permuted.vocab_size == one.vocab_size
    assert permuted.vocabulary_sha256 != one.vocabulary_sha256

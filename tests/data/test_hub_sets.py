"""Data sets of the Hugging Face hub; the package `datasets` is a stand-in."""

import importlib.machinery
import sys
import types

import pytest

from jvae.data.corpus import survey
from jvae.data.formats import Example, Reader
from jvae.errors import DataError


class ClassLabel:
    names = ["yes", "no"]


class Rows(list):
    features = {"text": object(), "label": ClassLabel()}


@pytest.fixture
def datasets(monkeypatch):
    """Answers `load_dataset` with `sets`; `asked` has its arguments."""
    module = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    rows = [("a man", 0), ("two\ngirls", 1), ("a dog", -1)]
    sets = {("me/toy", None, "train"): rows, ("me/toy", "small", "train[:2]"): rows[:2]}

    def load_dataset(name, configuration, split):
        if (name, configuration, split) not in sets:
            raise ValueError(f"Unknown split {split!r}.\nlong story")
        actual = sets[name, configuration, split]
        return Rows({"text": text, "label": label} for text, label in actual)

    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)


def read(name, cache, **options):
    corpus = survey(name, Reader(**options), cache)
    return corpus, [located.example for located in corpus.examples()]


def test_sets_are_read_by_name(datasets, tmp_path):
    part, examples = read("hf:me/toy:small:train[:2]", tmp_path, label="label")
    assert examples == [Example("a man", "", "yes"), Example("two girls", "", "no")]
    with pytest.raises(DataError, match="hf:me/toy:train:3: empty label"):
        read("hf:me/toy:train", tmp_path, label="label")
    whole, examples = read("hf:me/toy:train", tmp_path)
    assert [example.text for example in examples] == ["a man", "two girls", "a dog"]
    assert whole.files[0].sha256 != part.files[0].sha256


@pytest.mark.parametrize(
    "name, message",
    [
        ("hf:me/toy", "expected hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT"),
        ("hf:me/toy:valid", r"hf:me/toy:valid: cannot be opened \(Unknown split 'valid'.\)$"),
    ],
)
def test_what_cannot_be_opened(name, message, datasets, tmp_path):
    with pytest.raises(DataError, match=message):
        read(name, tmp_path)


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs datasets, .*pip install -e '.\[datasets\]'"):
        read("hf:me/toy:train", tmp_path)

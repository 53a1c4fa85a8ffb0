"""Public data sets by TFDS: read and prepared here without TensorFlow, or a clear message."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jvae.data import public
from jvae.data.corpus import survey
from jvae.data.formats import Example, Reader
from jvae.data.prepare import prepare
from jvae.data.tokenizers import train_word_level
from jvae.errors import DataError


class JvaeToyPairs(tfds.core.GeneratorBasedBuilder):
    """Three pairs and a label; one is not labelled."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "premise": tfds.features.Text(),
                    "hypothesis": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["yes", "no"]),
                    "votes": tfds.features.Scalar(np.int32),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        rows = [("a man", "a", "yes"), ("a dog", "b c", -1), ("the é", "d\ne", "no")]
        for i, (premise, hypothesis, label) in enumerate(rows):
            yield i, dict(premise=premise, hypothesis=hypothesis, label=label, votes=i)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def read(name, cache, **options):
    corpus = survey(name, Reader(**options), cache)
    return corpus, [located.example for located in corpus.examples()]


def test_a_set_is_prepared_and_read_by_name(data_dir, tmp_path):
    options = dict(text="hypothesis", source="premise", label="label", tfds_dir=data_dir)
    name = "tfds:jvae_toy_pairs:train"
    with pytest.raises(DataError, match="tfds:jvae_toy_pairs:train:2: empty label: expected one"):
        read(name, tmp_path, **options)
    corpus, examples = read(name, tmp_path, on_error="drop", **options)
    assert examples == [Example("a", "a man", "yes"), Example("d e", "the é", "no")]
    assert corpus.dropped == {"empty label": 1}
    tok = train_word_level(["a b c d e"])
    dataset = prepare(corpus, {"dec": tok}, {}, tmp_path)
    assert list(dataset.texts) == ["a", "d e"] and dataset.lines.where(1) == f"{name}:3"
    assert "tensorflow" not in sys.modules


def test_part_of_a_split_by_folder(data_dir, tmp_path):
    JvaeToyPairs(data_dir=data_dir, file_format="array_record").download_and_prepare()
    name = f"tfds:{data_dir}/jvae_toy_pairs/1.0.0:train[1:]"
    corpus, examples = read(name, tmp_path, text="premise", label="votes")
    assert [tuple(example) for example in examples] == [("a dog", "", "1"), ("the é", "", "2")]
    whole, _ = read(name.removesuffix("[1:]"), tmp_path, text="premise", label="votes")
    assert whole.files[0].sha256 != corpus.files[0].sha256


BAD = {
    "no split": ("tfds:snli", "expected tfds:NAME:SPLIT, for example tfds:snli:train"),
    "no set": ("tfds:no_such_set_at_all:train", "has no set 'no_such_set_at_all'"),
    "no folder": ("tfds:/nowhere/snli/1.1.0:train", "no prepared TFDS set in /nowhere/snli/1.1.0"),
    "other split": ("tfds:jvae_toy_pairs:test", "no split 'test'; the set has train"),
    "bad slice": ("tfds:jvae_toy_pairs:train[a:]", "TFDS cannot open or prepare it"),
}


@pytest.mark.parametrize("name, message", BAD.values(), ids=list(BAD))
def test_what_cannot_be_opened(name, message, data_dir, tmp_path):
    JvaeToyPairs(data_dir=data_dir, file_format="array_record").download_and_prepare()
    with pytest.raises(DataError) as caught:
        read(name, tmp_path, text="premise", tfds_dir=data_dir)
    assert str(caught.value).startswith(f"{name}: ") and message in str(caught.value)


def test_missing_feature(data_dir, tmp_path):
    JvaeToyPairs(data_dir=data_dir, file_format="array_record").download_and_prepare()
    with pytest.raises(DataError, match=r"train:1: has no key 'text' \(data.text\); its keys are"):
        read("tfds:jvae_toy_pairs:train", tmp_path, tfds_dir=data_dir)


def test_what_needs_tensorflow(data_dir, tmp_path, monkeypatch):
    class Needy(JvaeToyPairs):
        name = "needy"

        def download_and_prepare(self):
            try:
                raise ModuleNotFoundError("No module named 'tensorflow'")
            except ImportError as error:
                raise RuntimeError("failed") from error

    monkeypatch.setattr(public.tfds, "builder", lambda name, **kw: Needy(**kw))
    with pytest.raises(DataError, match="TFDS needs TensorFlow to prepare this set. Prepare it wh"):
        read("tfds:needy:train", tmp_path, tfds_dir=str(tmp_path))
    monkeypatch.setattr(public.tfds, "builder", lambda name, **kw: RecordFile())
    with pytest.raises(DataError, match="as tfrecord, which needs TensorFlow to read; prepare it"):
        read("tfds:old:train", tmp_path, tfds_dir=str(tmp_path))


class RecordFile:
    """A set prepared in TFDS's default format."""

    class info:
        splits = ("train",)

        class file_format:
            value = "tfrecord"

    @property
    def data_path(self):
        from pathlib import Path

        return Path(".")

    def as_data_source(self, split):
        raise NotImplementedError

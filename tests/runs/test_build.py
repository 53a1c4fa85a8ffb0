"""From a config to the data of a run: held-out splits, mixtures, warnings, what does not fit."""

import gzip

import numpy as np
import pytest

from jvae import config
from jvae.data import grammar, tokenizers
from jvae.data.plan import shuffled
from jvae.errors import ConfigError, DataError
from jvae.runs import build, data

WORDS = ["a", "man", "dog", "runs", "plays", "the", "guitar", "red", "boat"]


def sentences(n, seed=0):
    rng = np.random.RandomState(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, rng.randint(2, 9))) for i in range(n)]


def write(path, lines):
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def open_run(folder, name="optimus:tiny", **values):
    changes = {"data.vocab": 300, "data.cache": folder / "cache"} | {
        key.replace("__", "."): value for key, value in values.items()
    }
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    return build.open_run(config.apply_overrides(config.load(name), overrides), folder)


def test_held_out_splits_are_those_of_a_fixed_permutation(tmp_path):
    lines = sentences(100)
    run = open_run(tmp_path, data__train=write(tmp_path / "t.txt", lines))
    valid = set(shuffled(100, 0, 0, "hold out valid")[:5])
    left = [i for i in range(100) if i not in valid]
    test = {left[i] for i in shuffled(95, 0, 0, "hold out test")[:4]}
    assert list(run.data["valid"].texts) == [lines[i] for i in sorted(valid)]
    assert list(run.data["test"].texts) == [lines[i] for i in sorted(test)]
    rest = [lines[i] for i in left if i not in test]
    assert list(run.data["train"].texts) == rest
    assert run.data["train"].lines.where(0) == f"{tmp_path}/t.txt:{left[0] + 1}"
    assert not [line for line in run.log if "unseen" in line]
    # The tokenizer has not seen what is held out.
    assert run.decoder.fingerprint == tokenizers.train_bpe(rest, 300, "encoder").fingerprint


def test_twenty_lines_suffice_for_both_held_out_splits(tmp_path):
    run = open_run(tmp_path, data__train=write(tmp_path / "t.txt", sentences(20)))
    assert [len(run.data[split]) for split in ("train", "valid", "test")] == [18, 1, 1]


def test_files_of_several_formats_are_one_split(tmp_path):
    first, second = sentences(30), sentences(30, 1)
    write(tmp_path / "b.txt.gz", first)
    write(tmp_path / "c.tsv", [f"pos\t{line}" for line in second])
    valid = write(tmp_path / "v.txt", sentences(20, 2))
    run = open_run(
        tmp_path,
        data__train=f"{tmp_path}/c.tsv,{tmp_path}/b*.gz",
        data__valid=valid,
        data__test=valid,
    )
    assert list(run.data["train"].texts) == second + first
    (said,) = [line for line in run.log if "unseen" in line]
    assert said.startswith(f"{tmp_path}/v.txt: in both valid and test; metrics on it would not be")


def test_the_same_text_under_two_names(tmp_path):
    names = [write(tmp_path / f"{split}.txt", sentences(40)) for split in ("train", "test")]
    run = open_run(tmp_path, data__train=names[0], data__test=names[1])
    said = f"{names[0]} and {names[1]} (same content): in both train and test; metrics on it"
    assert any(line.startswith(said) for line in run.log)


def test_warnings_come_once(tmp_path):
    path = write(tmp_path / "t.txt", [*sentences(60), "", ""])
    run = open_run(tmp_path, data__train=path, data__on_error="drop")
    said = [line for line in run.log if "were dropped" in line]
    assert said == [f"train: {path}: 2 of 62 lines (3.2%) were dropped (empty: 2)"]


def test_what_does_not_fit(tmp_path):
    few = write(tmp_path / "few.txt", sentences(19))
    with pytest.raises(DataError, match="19 lines are too few to hold some out for valid; set"):
        open_run(tmp_path, data__train=few)
    long = write(tmp_path / "long.txt", [*sentences(40), "dog " * 200])
    with pytest.raises(DataError, match=r"long.txt:41: \d+ tokens with .* more than the \d+ that"):
        open_run(
            tmp_path,
            data__train=long,
            model__encoder__positions=64,
            model__decoder__positions=64,
        )
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_pairs_for_a_conditional_model(tmp_path):
    name = "della:tiny"
    conditional = {"model__conditional": True}
    pairs = [(f"{i} the dog", line) for i, line in enumerate(sentences(60))]
    path = write(tmp_path / "t.tsv", map("\t".join, pairs))
    run = open_run(tmp_path, name, **conditional, data__train=path, data__source=0)
    assert [dataset.joined for dataset in run.data.values()] == [("dec", "enc")] * 3
    assert run.config.decode.max_length == run.data["train"].target_lengths.max()
    section = run.config.data
    assert min(section.enc_row, section.dec_row) >= run.data["train"].dec.lengths.max()
    assert (run.rows.cond_row, run.rows.enc_row) == (section.cond_row, section.enc_row)
    assert any(line.startswith("fill of rows with 55 examples: ") for line in run.log)
    lines = run.data["valid"].lines
    assert [(lines.source[i], lines.text[i]) for i in range(3)] == [
        pairs[number - 1] for number in lines.line_no
    ]
    with pytest.raises(DataError, match="the model reads a source text; set data.source to its"):
        open_run(tmp_path, name, **conditional, data__train=path)
    with pytest.raises(ConfigError, match="data.train is empty: the embedded corpus has no source"):
        open_run(tmp_path, name, **conditional)


def test_a_second_run_on_the_embedded_corpus_reads_what_the_first_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(grammar, "TRAIN", 300)
    first = open_run(tmp_path)
    other_rows = open_run(tmp_path, data__row_tokens=128)

    def fail(*args):
        raise AssertionError(f"computed again: {args}")

    monkeypatch.setattr(tokenizers.TextTokenizer, "encode_batch", fail)
    monkeypatch.setattr(data, "propose_rows", fail)
    for expected, values in ((first, {}), (other_rows, dict(data__row_tokens=128))):
        run = open_run(tmp_path, **values)
        assert run.rows == expected.rows
        for split, dataset in run.data.items():
            for side, encoded in dataset.sides.items():
                np.testing.assert_array_equal(encoded.flat, expected.data[split].sides[side].flat)
    assert first.rows != other_rows.rows


def test_proposed_rows_follow_the_lengths(tmp_path):
    """Rows of one corpus are not those of another with as many lines."""
    short, long = sentences(200), [f"{line} {line}" for line in sentences(200)]
    rows = [
        open_run(tmp_path, data__train=write(tmp_path / f"{len(lines[0])}.txt", lines)).rows
        for lines in (short, long)
    ]
    assert rows[0] != rows[1]

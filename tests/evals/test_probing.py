"""Probes of a run: on labels of a file, on factors of the embedded corpus."""

import json

import jax
import numpy as np
import pytest

from jvae import config as configs
from jvae.data import grammar
from jvae.errors import ConfigError
from jvae.evals import disentangle, evaluation, probing
from jvae.parallel import mesh as meshes
from jvae.runs import build

SMALL = (
    *("model.encoder.width=8", "model.encoder.mlp=8", "model.encoder.heads=1"),
    *("model.decoder.width=8", "model.decoder.mlp=8", "model.decoder.heads=1"),
    *("model.latent=4", "data.batch_rows=8", "data.row_tokens=64", "data.vocab=300"),
)


@pytest.fixture(autouse=True)
def _few_edits(monkeypatch):
    monkeypatch.setattr(probing, "EDITED", 5)
    monkeypatch.setattr(probing, "SCALES", (1.0,))


def opened(tmp_path, *more):
    config = configs.apply_overrides(configs.load("optimus"), (*SMALL, *more))
    run = build.open_run(config, tmp_path / "run")
    mesh = meshes.make_mesh(dict(data=1), jax.devices()[:1])
    return run, mesh, evaluation.untrained(run, mesh)


@pytest.mark.slow
def test_labels_of_a_file(tmp_path):
    path = tmp_path / "mine.tsv"
    sentences = grammar.corpus("train", 300)
    path.write_text("".join(f"{'many' if s.factors[0] else 'one'}\t{s.text}\n" for s in sentences))
    files = (f"data.train={path}", "data.label=0", f"data.cache={tmp_path / 'cache'}")
    run, mesh, params = opened(tmp_path, *files)
    labels = probing.labels_of(run, "test")["label"]
    counted = {s.text: "many" if s.factors[0] else "one" for s in sentences}
    assert labels.tolist() == [counted[text] for text in run.data["test"].texts]
    report = probing.probe(run, mesh, params, 0)
    stored = json.loads((run.workdir / "eval/probe.json").read_text())
    rows = stored["metrics"]
    assert {"probe_label", "probe_label_each_100", "cluster_label_accuracy"} <= set(rows)
    assert "probe_label_each_500" not in rows and "mig" not in rows
    left_out = [note for note in stored["notes"] if "is left out" in note]
    assert [note.split()[0] for note in left_out] == [
        f"probe_label_each_{size}" for size in (500, 1_000)
    ]
    assert "the most frequent label, " in left_out[0]
    assert rows["probe_label_each_10"]["note"].startswith("10 of each label; 10 draws")
    parts = [f"{size}{part}" for size in ("", "_each_10") for part in ("_balanced", "_f1")]
    assert {f"probe_label{part}" for part in parts} <= set(rows)
    # These parameters are the untrained ones: the baseline says the same.
    for name, row in rows.items():
        if not name.startswith("attribute_"):
            assert row["baseline"] == pytest.approx(row["value"]), name
    assert "permuted" in rows["probe_label"]["note"]
    assert report.card.baselines["probe"] == "untrained model"
    # Nothing is flipped by no vector; the sentences moved stand below themselves.
    assert {f"attribute_label_{score}_{s}" for score in ("flip", "bleu") for s in "01"} <= set(rows)
    assert "to many" in rows["attribute_label_flip_1"]["note"]
    assert "many to one" in rows["attribute_label_order"]["note"]
    blocks = (run.workdir / "samples/attribute.txt").read_text().split("\n\n")
    heads = [block.split("\n")[0].split("\t") for block in blocks if block.strip()]
    assert [counted[text] for _, text in heads] == [label for label, _ in heads]
    assert sorted(label for label, _ in heads) == ["many"] * 5 + ["one"] * 5
    assert [row.split("\t")[0] for row in blocks[0].split("\n")[1:]] == ["+0", "+1"]
    sizes = dict(per_label=(1, 40), sentences=12)
    run.config.evals.update(sizes)
    small = probing.probe(run, mesh, params, 0)
    names = {row.name for row in small.rows}
    assert {"probe_label_each_1", "probe_label_each_40"} <= names
    assert "probe_label_each_100" not in names
    assert small.card.sentences == 12


@pytest.mark.slow
def test_factors_of_the_embedded_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(grammar, "TRAIN", 200)
    monkeypatch.setattr(grammar, "VALID", 20)
    monkeypatch.setattr(grammar, "TEST", 60)
    monkeypatch.setattr(disentangle, "POINTS", 40)
    monkeypatch.setattr(disentangle, "TREES", 2)
    several = ("model.vectors=2", "model.pool=queries")
    run, mesh, params = opened(tmp_path, "evals.factor=tense", *several)
    labels = probing.labels_of(run, "test")
    assert list(labels) == [factor.name for factor in grammar.FACTORS]
    for i, text in enumerate(run.data["test"].texts):
        assert tuple(int(column[i]) for column in labels.values()) == grammar.parse(text)
    rows = {row.name: row for row in probing.probe(run, mesh, params, 0).rows}
    assert {"probe_tense_each_10", "cluster_tense_nmi", "mig", "z_diff"} <= set(rows)
    accuracies = [n for n in rows if n.startswith("probe_") and not n.endswith(("balanced", "f1"))]
    averaged = [name for name in accuracies if name.endswith("_mean_vector")]
    assert len(averaged) <= len(labels) and len(accuracies) - len(averaged) <= len(labels) + 5
    assert averaged == [f"{n}_mean_vector" for n in accuracies if f"{n}_mean_vector" in averaged]
    assert rows["probe_tense"].value != rows["probe_tense_mean_vector"].value
    assert all(np.isfinite(row.value) and row.baseline is not None for row in rows.values())
    wrong = run._replace(config=configs.apply_overrides(run.config, ["evals.factor=mood"]))
    with pytest.raises(ConfigError, match="evals.factor is 'mood'; expected one of count, who"):
        probing.probe(wrong, mesh, params, 0)
